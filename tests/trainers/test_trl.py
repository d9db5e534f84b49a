"""TRL's SFTTrainer: what holds in every trainer, and what only TRL has."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from types import SimpleNamespace

import pytest

pytest.importorskip("trl")

import torch
import yaml
from datasets import IterableDataset
from material import ROOT, run_command
from peft import IA3Config
from trl import SFTConfig, SFTTrainer

from sstoken_plugin import attach
from sstoken_plugin.base import versions
from sstoken_plugin.trl import SSTokenSFTConfig, SSTokenSFTTrainer
from sstoken_plugin.trl.refusals import REFUSALS
from trainers import run_trl
from trainers.cases import SELECTS, Cases
from trainers.documented import block, prepare, python

TRL = tuple(map(int, version("trl").split(".")[:2]))
PAGE = "sstoken/report.html"


class TestTrl(Cases):
    """What holds in every trainer."""

    adapter = run_trl

    @pytest.mark.parametrize("loss", ["nll", "chunked_nll"])
    def test_every_way_of_computing_the_plain_loss_is_replaced(self, train, loss):
        options = {"loss_type": loss}
        selected, plain = train(sstoken={"ratio": 1.0}, options=options, evaluates=True), train(options=options)
        assert selected.losses == pytest.approx(plain.losses, rel=2e-5)

    def test_log_lines_count_tokens_and_evaluate_as_trl_does(self, train, kind):
        changes = {"kind": kind, "evaluates": True, "learning_rate": 0.0, "accumulation": 2, "steps": 2}
        selected, plain = train(sstoken={"ratio": 0.3}, **changes), train(**changes)
        assert [line["num_tokens"] for line in selected.lines] == [line["num_tokens"] for line in plain.lines]
        ours, theirs = (
            [
                {name: value for name, value in line.items() if "runtime" not in name and "per_second" not in name}
                for line in run.trainer.state.log_history
                if "eval_loss" in line
            ]
            for run in (selected, plain)
        )
        assert ours == theirs
        assert {"eval_entropy", "eval_mean_token_accuracy"} <= ours[0].keys()

    def test_a_trainer_that_was_made_elsewhere_trains_alike(self, plan, train):
        made = train(sstoken=SELECTS)
        trainer = run_trl.make(plan)
        assert attach(trainer, SELECTS) is trainer
        assert isinstance(trainer, SFTTrainer)
        trainer.train()
        assert [line["loss"] for line in trainer.state.log_history if "loss" in line] == made.losses

    def test_routers_keep_their_loss(self, train, tokenizer, tmp_path):
        from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

        torch.manual_seed(0)
        config = Qwen3MoeConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_experts=4,
            num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            eos_token_id=2, pad_token_id=0, router_aux_loss_coef=0.1,
        )  # fmt: skip
        Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "experts")
        tokenizer.save_pretrained(tmp_path / "experts")
        options = {"router_aux_loss_coef": 0.5}
        changes = {"model": str(tmp_path / "experts"), "accumulation": 2, "options": options}
        selected, plain = train(sstoken={"ratio": 1.0}, **changes), train(**changes)
        without = train(**{**changes, "options": {"router_aux_loss_coef": 0.0}})
        assert selected.losses == pytest.approx(plain.losses, rel=2e-5)
        assert plain.losses != pytest.approx(without.losses, rel=1e-2)

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"loss_type": "dft"}, r"loss_type: dft weights .*; leave it out"),
            ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor"),
            (
                {"packing": True, "packing_strategy": "wrapped"},
                r"packing_strategy: wrapped .* set packing_strategy: bfd",
            ),
        ],
    )
    def test_another_objective_is_refused_before_training(self, train, options, named):
        with pytest.raises(ValueError, match=named):
            train(options=options, sstoken={})

    def test_another_trainer_or_data_are_refused(self, plan):
        class Own(SFTTrainer):
            def compute_loss(self, *args, **kwargs):
                return super().compute_loss(*args, **kwargs)

        with pytest.raises(ValueError, match=r"compute_loss: Own .* derive it from .*SSTokenSFTTrainer"):
            attach(run_trl.make(plan, Own))
        with pytest.raises(ValueError, match=r"peft_config: IA3 .* use LoraConfig"):
            run_trl.make(
                dataclasses.replace(plan, sstoken={}),
                peft_config=IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
            )
        rows = IterableDataset.from_generator(lambda: iter(run_trl.rows_of(plan)))
        with pytest.raises(ValueError, match=r"dataset_streaming: a stream .* load the data set whole"):
            run_trl.make(dataclasses.replace(plan, sstoken={}), train_dataset=rows)

    def test_what_is_seen_by_a_look_at_the_trainer_is_refused(self, plan):
        """For what takes a GPU, or a model that sees, to be made."""
        trainer = run_trl.make(plan)
        found = {refusal.key: holds for holds, refusal in REFUSALS}
        assert all(holds(trainer) is None for holds in found.values())
        trainer._is_vision_dataset = True
        assert found["train_dataset"](trainer) == "images"
        trainer.args.use_liger_kernel = True
        assert found["use_liger_kernel"](trainer)
        trainer.args.liger_kernel_config = {"fused_linear_cross_entropy": False}
        assert found["use_liger_kernel"](trainer) is None
        assert found["trainer"](SimpleNamespace()) == "SimpleNamespace"

    def test_every_refusal_is_documented(self):
        page = (ROOT / "docs" / "trainers.md").read_text().split("\n## TRL\n")[1]
        assert all(refusal.key in page for _, refusal in REFUSALS)

    def test_a_block_that_the_trainer_does_not_read_stops_the_run(self, plan):
        args = SSTokenSFTConfig(output_dir=plan.folder, bf16=False, use_cpu=True, sstoken={"ratio": 0.5})
        trainer = run_trl.make(plan, SFTTrainer, args=args)
        with pytest.raises(ValueError, match="sstoken: the trainer does not read this block"):
            trainer.train()

    def test_settings_come_from_one_place(self, plan):
        args = SSTokenSFTConfig(output_dir=plan.folder, bf16=False, use_cpu=True, sstoken={"ratio": 0.5})
        with pytest.raises(ValueError, match="sstoken: the trainer is given settings, and so are its args"):
            SSTokenSFTTrainer(plan.model, args, sstoken={"ratio": 0.4})


class TestCommand:
    """`python -m sstoken_plugin.trl`."""

    @pytest.fixture
    def read(self, tmp_path, monkeypatch):
        """Give the command a file and more, and return the settings that it would train with."""
        import trl
        from trl.scripts import sft

        from sstoken_plugin.trl import __main__ as command

        for name in ("SFTConfig", "SFTTrainer", "TrlParser"):
            monkeypatch.setattr(trl, name, getattr(trl, name))
        found = []
        monkeypatch.setattr(sft, "main", lambda *settings: found.append(settings))

        def run(keys, *arguments):
            file = tmp_path / "c.yaml"
            file.write_text(
                yaml.safe_dump({"output_dir": str(tmp_path / "out"), "bf16": False, "use_cpu": True, **keys})
            )
            command.main(["--config", str(file), *arguments])
            assert trl.SFTTrainer is SSTokenSFTTrainer
            return found[-1][1]

        return run

    def test_a_block_is_read_from_file_and_command_line(self, read):
        assert read({"sstoken": {"ratio": 0.4}}).sstoken == {"ratio": 0.4}
        assert read({"sstoken": {"ratio": 0.4}}, "--sstoken", '{"ratio": 0.3}').sstoken == {"ratio": 0.3}
        assert read({"sstoken": None}).sstoken == {}
        assert read({}).sstoken == {}

    @pytest.mark.parametrize(
        ("keys", "arguments", "named"),
        [
            ({"sstoken": {"ration": 0.4}}, [], r"sstoken\.ration is not a key; the nearest one is sstoken\.ratio"),
            ({"sstoken": 0.4}, [], "not a block of settings"),
            ({"sstokn": {"ratio": 0.4}}, [], "sstokn is not a key; write `sstoken:`"),
            ({"sstoken.ratio": 0.4}, [], r"sstoken\.ratio is not a key; write `sstoken:`"),
            ({}, ["--sstoken", "ratio=0.4"], "'ratio=0.4' is not JSON"),
        ],
    )
    def test_a_block_that_cannot_be_read_is_refused(self, read, keys, arguments, named):
        with pytest.raises(ValueError, match=named):
            read(keys, *arguments)

    @pytest.mark.parametrize("line", [["--config", "c.yaml"], ["--sstoken", "{}"]])
    def test_trls_own_script_stops_at_a_block_that_it_would_leave_out(self, tmp_path, monkeypatch, line):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "c.yaml").write_text("sstoken: {ratio: 0.4}\noutput_dir: out\n")
        words = [*line, "--output_dir", "out", "--dataset_name", "none"]
        # As the start-up file of an installed package does.
        code = "import sstoken_startup; from trl.scripts import sft; sft.make_parser().parse_args_and_config("
        code += f"{words!r}, fail_with_unknown_args=False)"
        done = run_command(python(), "-c", code, check=False, PYTHONPATH=f"{ROOT}:{ROOT / 'startup'}")
        assert done.returncode != 0
        assert "sstoken: nobody reads it here, and every token would be trained on" in done.stdout

    def test_the_example_runs(self, tiny_llama, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        prepare(tmp_path, tiny_llama, "outputs/trl-sft/data.jsonl")
        line = block("TRL", "bash").splitlines()[1].split()
        told = run_command(*line, "--sstoken", '{"ratio": 0.4}', PYTHONPATH=f"{ROOT}", ACCELERATE_USE_CPU="1").stdout
        assert "ssToken is active: it trains on 40%" in told
        assert (tmp_path / "outputs/trl-sft" / PAGE).exists()
        assert (tmp_path / "outputs/trl-sft/adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("page", "heading", "folder", "kept"),
    [
        ("trainers.md", "TRL", "outputs/trl", "60%"),
        ("python-api.md", "SSTokenSFTTrainer", "outputs/python-api", "40%"),
    ],
)
def test_a_documented_example_runs(page, heading, folder, kept, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, tiny_llama, f"{folder}/data.jsonl")
    (tmp_path / "example.py").write_text(block(heading, "python", page))
    told = run_command(python(), "example.py", PYTHONPATH=f"{ROOT}").stdout
    assert f"ssToken is active: it trains on {kept}" in told
    assert list((tmp_path / folder).rglob("report.html"))


def test_another_version_is_named_with_the_range(monkeypatch):
    monkeypatch.delenv("SSTOKEN_ANY_TRL", raising=False)
    monkeypatch.setattr(versions, "version", lambda package: "1.20.0")
    with pytest.raises(ValueError, match=r"trl: sstoken runs on TRL 1\.9 to 1\.16, and this is 1\.20\.0; install"):
        versions.refuse_unsupported("trl", "TRL", (1, 9), (1, 16))
    monkeypatch.setenv("SSTOKEN_ANY_TRL", "1")
    versions.refuse_unsupported("trl", "TRL", (1, 9), (1, 16))


def test_the_configuration_is_trls_with_one_more_field():
    added = {field.name for field in dataclasses.fields(SSTokenSFTConfig)}
    assert added - {field.name for field in dataclasses.fields(SFTConfig)} == {"sstoken"}
