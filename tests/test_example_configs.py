"""Every example loads and validates as it would on the machine that it is for."""

import os

import pytest
import yaml
from material import ROOT

from sstoken_plugin.experiments.config import read
from sstoken_plugin.experiments.runs import runs_of, train_yaml

GPU = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "n_node": 1, "compute_capability": "sm_89"}
CARDS = sorted((ROOT / "example_configs" / "cards").glob("*.yaml"))
EXAMPLES = [*sorted((ROOT / "example_configs").glob("*.yaml")), *CARDS]
EXPERIMENTS = sorted((ROOT / "example_configs" / "experiments").glob("*.yaml"))


def validate(raw):
    from axolotl.cli.config import prepare_plugins
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    PluginManager.get_instance().plugins.clear()
    cfg = DictDefault(raw)
    prepare_plugins(cfg)
    return validate_config(cfg, capabilities=dict(GPU), env_capabilities={"torch_version": "2.13.0"})


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_example_validates(file):
    raw = yaml.safe_load(file.read_text())
    assert raw["plugins"] == ["sstoken"]
    cfg = validate(raw)
    # An unknown key is dropped without a word by Axolotl's schema: what was written must be there after.
    assert set(raw) <= set(cfg)
    assert raw["sstoken"].items() <= cfg.sstoken.items()


@pytest.mark.parametrize("file", [file for file in EXAMPLES if file.stem != "cpu-demo"], ids=lambda file: file.stem)
def test_the_template_of_an_example_labels_answers_and_the_end_token_only(file, tokenizer):
    """The end token must be the tokenizer's own: LoRA cannot teach a base model one that it was not trained on."""
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault

    cfg = DictDefault(yaml.safe_load(file.read_text()))
    assert "eot_tokens" not in cfg
    chat = [("system", "Be short."), ("human", "Hi there"), ("gpt", "Hello."), ("human", "Bye"), ("gpt", "See you.")]
    sample = load(tokenizer, cfg, ds_cfg=cfg.datasets[0]).tokenize_prompt(
        {"conversations": [{"from": role, "value": text} for role, text in chat]}
    )
    labelled = [token for token, label in zip(sample["input_ids"], sample["labels"], strict=True) if label != -100]
    assert tokenizer.decode(labelled) == f"Hello.{tokenizer.eos_token}See you.{tokenizer.eos_token}"
    if cfg.base_model.startswith("meta-llama"):
        assert sample["input_ids"][0] == tokenizer.bos_token_id


def test_the_recipes_show_the_yamls_for_cards():
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert CARDS
    assert all(f"](../{file.relative_to(ROOT)})" in page for file in CARDS)


def test_there_is_an_example_for_each_model_of_the_paper():
    names = {file.stem for file in EXAMPLES}
    models = ("llama-3.2-3b", "llama-3.1-8b", "qwen2.5-7b", "qwen2.5-14b")
    assert {f"{model}-{kind}" for model in models for kind in ("lora", "qlora")} | {"cpu-demo"} <= names


def test_a_misspelt_key_in_an_example_would_be_found():
    raw = yaml.safe_load((ROOT / "example_configs" / "cpu-demo.yaml").read_text())
    with pytest.raises(ValueError, match=r"sstoken\.rattio .* sstoken\.ratio"):
        validate({**raw, "sstoken": {"rattio": 0.5}})


def test_the_demo_learns_from_none_of_its_questions(monkeypatch):
    monkeypatch.syspath_prepend(os.fspath(ROOT / "demo"))
    import data

    questions = [question for question, _, _ in data.facts()]
    assert len(questions) == len(set(questions)) >= 150
    assert not set(questions) & set(data.HELD_OUT)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_arm_of_an_example_validates_and_its_tasks_are_there(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    experiment = read(file)
    for run in runs_of(experiment):
        train = train_yaml(run, experiment.out)
        cfg = validate(train)
        assert set(train) - {"sstoken"} <= set(cfg)
    asked = {task for each in experiment.evaluations.values() for task in getattr(each, "tasks", ())}
    if asked:
        tasks = pytest.importorskip("lm_eval.tasks")
        assert asked <= set(tasks.TaskManager().all_tasks)
