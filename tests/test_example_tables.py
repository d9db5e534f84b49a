"""The page of refusals follows from what Axolotl's validation says to examples, and from the list of refusals."""

import pytest
import yaml
from material import ROOT

from scripts import write_examples
from scripts.example_verdicts import judge_all, model_type
from sstoken_plugin.axolotl import refusals

# The shape of Axolotl's examples, of which these are short copies.
COMMON = {
    "datasets": [{"path": "mhenrichsen/alpaca_2k_test", "type": "alpaca"}],
    "output_dir": "./outputs/out",
    "sequence_len": 2048,
    "sample_packing": False,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_epochs": 1,
    "optimizer": "adamw_torch_fused",
    "lr_scheduler": "cosine",
    "learning_rate": 0.0002,
    "bf16": "auto",
    "attn_implementation": "flash_attention_2",
}
LORA = {**COMMON, "adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}
SEES = {**LORA, "base_model": "google/gemma-3-4b-it"}
LLAMA = {**LORA, "base_model": "NousResearch/Llama-3.2-1B"}
EXAMPLES = {
    "cloud/modal.yaml": {"provider": "modal", "gpu": "h100"},
    "gemma3/text.yml": SEES,
    "gemma3/vision.yml": {
        **SEES, "processor_type": "AutoProcessor", "skip_prepare_dataset": True, "remove_unused_columns": False,
    },
    "llama-3/diffusion/sft.yaml": {
        **COMMON, "base_model": LLAMA["base_model"], "plugins": ["axolotl.integrations.diffusion.DiffusionPlugin"],
        "diffusion": {"mask_token_id": 128002}, "attn_implementation": "sdpa",
    },
    "llama-3/dpo.yml": {
        **LLAMA, "rl": "dpo",
        "datasets": [{"path": "fozziethebeat/alpaca_messages_2k_dpo_test", "type": "chat_template.default"}],
    },
    "llama-3/lora.yml": {**LLAMA, "plugins": ["axolotl.integrations.liger.LigerPlugin"], "liger_rms_norm": True},
    "llama-3/packed.yml": {
        **LLAMA, "sample_packing": True, "attn_implementation": "kernels-community/vllm-flash-attn3",
    },
    "llama-3/tokens.yml": {**LLAMA, "tokens": {"pad_token": "<|padding|>"}},
    "llama-3/zero.yml": {**LLAMA, "deepspeed": "deepspeed_configs/zero1.json"},
    "plano/unknown.yaml": {**LORA, "base_model": "katanemo/Plano-Orchestrator-4B"},
    "qwen3/tp.yaml": {
        **COMMON, "base_model": "Qwen/Qwen3-8B", "tensor_parallel_size": 2, "fsdp_version": 2,
        "fsdp_config": {
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": "Qwen3DecoderLayer",
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of examples as Axolotl brings them."""
    root = tmp_path_factory.mktemp("examples")
    for name, content in EXAMPLES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(yaml.safe_dump(content))
    (root / "README.md").write_text("base_model: none")
    return root


@pytest.fixture(scope="module")
def verdicts(folder):
    return {verdict.name: verdict for verdict in judge_all(folder)}


def test_each_example_gets_the_verdict_that_a_run_would(verdicts):
    assert set(verdicts) == set(EXAMPLES) - {"cloud/modal.yaml"}
    outcomes = {name: verdict.outcome for name, verdict in verdicts.items()}
    assert {name for name, outcome in outcomes.items() if outcome == "accepted"} == {
        "gemma3/text.yml", "llama-3/lora.yml", "plano/unknown.yaml",
    }  # fmt: skip
    assert outcomes["llama-3/zero.yml"] == "warned"
    assert verdicts["llama-3/zero.yml"].warnings == ["deepspeed"]
    assert outcomes["llama-3/tokens.yml"] == "refused by Axolotl"
    assert verdicts["llama-3/tokens.yml"].sentence.startswith("tokens: ")
    refused = {name: verdict.refusal.key for name, verdict in verdicts.items() if outcomes[name] == "refused"}
    # Before the key, Axolotl had the trainer of its plugin only.
    assert refused.pop("llama-3/diffusion/sft.yaml") in ("diffusion_lm", "plugins")
    assert refused == {
        "gemma3/vision.yml": "processor_type", "llama-3/dpo.yml": "rl", "llama-3/packed.yml": "attn_implementation",
        "qwen3/tp.yaml": "tensor_parallel_size",
    }  # fmt: skip
    other = {name for name, verdict in verdicts.items() if not verdict.supervised}
    assert other == {"llama-3/dpo.yml", "llama-3/diffusion/sft.yaml"}


def test_a_model_that_can_see_is_told_by_its_type(verdicts):
    assert verdicts["gemma3/text.yml"].multimodal is True
    assert verdicts["llama-3/lora.yml"].multimodal is False
    assert verdicts["plano/unknown.yaml"].multimodal is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("meta-llama/Llama-3.2-1B", "llama"),
        ("alpindale/Llama-3.2-11B-Vision-Instruct", "mllama"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl"),
        ("mistralai/Mistral-7B-v0.1", "mistral"),
        ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", "mistral3"),
        ("google/gemma-3-4b-it", "gemma3"),
        ("google/gemma-3-1b-it", "gemma3_text"),
        ("openai/gpt-oss-20b", "gpt_oss"),
        ("somebody/a-model-to-come", None),
    ],
)
def test_the_type_of_a_model_is_part_of_its_name(name, kind):
    assert model_type(name) == kind


def test_the_page_is_written_and_checked(folder, verdicts, tmp_path, monkeypatch, capsys):
    page = tmp_path / "support.md"
    page.write_text(f"before\n{write_examples.BEGIN}\n{write_examples.END}\nafter\n")
    monkeypatch.setattr(write_examples, "PAGE", page)
    # Each of the three would take its seconds.
    monkeypatch.setattr(write_examples, "judge_all", lambda found: iter(list(verdicts.values())))
    write_examples.main([str(folder)])
    assert "refused: gemma3/vision.yml: processor_type: AutoProcessor feeds images" in capsys.readouterr().out
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    for line in (
        "| accepted | 3 | 0 |", "| refused by the plugin | 3 | 2 |", "| all | 8 | 2 |", "1 of the accepted ones train",
        "and of 1\nthe type of the model is not known", "remove `rl` or take sstoken out of `plugins:` | 1: llama-3 |",
        "with a warning of a way of training that has not been run | 1 | 0 |", "\n- 1: tokens: ",
    ):  # fmt: skip
        assert line in written
    with pytest.raises(SystemExit, match=r"^0$"):
        write_examples.main([str(folder), "--check"])
    verdicts["llama-3/new.yml"] = verdicts["llama-3/lora.yml"]
    try:
        with pytest.raises(SystemExit, match=r"support\.md is out of date"):
            write_examples.main([str(folder), "--check"])
    finally:
        del verdicts["llama-3/new.yml"]
    assert page.read_text() == written


def test_an_empty_folder_and_a_page_without_marks_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no YAML with a base_model; make it with `axolotl fetch examples`"):
        write_examples.main([str(tmp_path)])
    with pytest.raises(ValueError, match=r"support\.md must have the lines"):
        write_examples.placed("no marks", "text")


def test_the_page_lists_every_refusal_and_warning():
    """What needs no example of Axolotl to be checked."""
    page = (ROOT / "docs" / "support.md").read_text()
    written = page.split(write_examples.BEGIN)[1].split(write_examples.END)[0]
    rows = written.split("| key | why |")[1].split("What Axolotl itself")[0]
    keys = [row.split(" | ")[0].removeprefix("| ") for row in rows.splitlines() if row.startswith("| `")]
    listed = [key.split("`")[1] for key in keys[: len(refusals.REFUSALS)]]
    assert listed == [refusal.key for refusal in refusals.REFUSALS]
    for refusal in refusals.REFUSALS:
        assert f" | {refusal.reason} | {refusal.way_out} | " in rows
    warned = "".join(keys[len(refusals.REFUSALS) :])
    assert all(f"`{key}`" in warned for key in refusals.UNTESTED)
