"""A folder in `sstoken.history` that is damaged, or brings what nobody asked for: one sentence, and nothing is run."""

import json
import os
import shutil

import pytest
import torch
from damage import cut, edited, flipped, gone, written
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sstoken_plugin.axolotl.run import run_of
from sstoken_plugin.engine.run import Run
from sstoken_plugin.history.given import load_given


def new_model(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))


@pytest.fixture(scope="module")
def sources(tiny_llama, tmp_path_factory):
    """A whole adapter and a whole checkpoint; tests change copies."""
    folder = tmp_path_factory.mktemp("sources")
    new_model(tiny_llama).save_pretrained(folder / "adapter")
    shutil.copytree(tiny_llama, folder / "model")
    return folder


def without_tensors(name, part):
    def change(folder):
        tensors = load_file(folder / name)
        kept = {key: value for key, value in tensors.items() if part not in key}
        assert 0 < len(kept) < len(tensors)
        save_file(kept, folder / name, metadata={"format": "pt"})

    return change


def split(folder):
    """As a checkpoint of several files, of which one is gone."""
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-2.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


class Bomb:
    """Makes a folder where a pickle of it is loaded without care."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "executed"),)


def pickled(old, new):
    def change(folder):
        (folder / old).unlink()
        torch.save({"x": Bomb(folder)}, folder / new)

    return change


def surplus(folder):
    """Weights for layers that the settings do not name."""
    tensors = load_file(folder / ADAPTER)
    more = {name.replace("q_proj", "v_proj"): tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors | more, folder / ADAPTER, metadata={"format": "pt"})


def not_finite(name):
    def change(folder):
        tensors = load_file(folder / name)
        next(iter(tensors.values())).fill_(float("nan"))
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return change


ADAPTER, MODEL = "adapter_model.safetensors", "model.safetensors"
DAMAGE = {
    "adapter: cut": ("adapter", cut(ADAPTER, 500)),
    "adapter: empty": ("adapter", written(ADAPTER, b"")),
    "adapter: no weights": ("adapter", gone(ADAPTER)),
    "adapter: a bit of the header": ("adapter", flipped(ADAPTER, 3)),
    "adapter: tensors missing": ("adapter", without_tensors(ADAPTER, "layers.1")),
    "adapter: weights that its settings leave out": ("adapter", surplus),
    "adapter: weights that are no numbers": ("adapter", not_finite(ADAPTER)),
    "adapter: another rank": ("adapter", edited("adapter_config.json", r=7)),
    "adapter: a kind to come": ("adapter", edited("adapter_config.json", peft_type="FUTURE")),
    "adapter: no kind": ("adapter", edited("adapter_config.json", peft_type=...)),
    "adapter: rank of text": ("adapter", edited("adapter_config.json", r="x")),
    "adapter: targets of numbers": ("adapter", edited("adapter_config.json", target_modules=7)),
    "adapter: settings of another kind": ("adapter", written("adapter_config.json", b"[]")),
    "adapter: settings that are cut": ("adapter", cut("adapter_config.json", 40)),
    "adapter: settings that are no UTF-8": ("adapter", written("adapter_config.json", b"\xff\xfe\x00")),
    "adapter: a pickle": ("adapter", pickled(ADAPTER, "adapter_model.bin")),
    "model: cut": ("model", cut(MODEL, 500)),
    "model: empty": ("model", written(MODEL, b"")),
    "model: no weights": ("model", gone(MODEL)),
    "model: tensors missing": ("model", without_tensors(MODEL, "layers.2.mlp")),
    "model: fewer layers than its file": ("model", edited("config.json", num_hidden_layers=2)),
    "model: weights that are no numbers": ("model", not_finite(MODEL)),
    "model: a part is gone": ("model", split),
    "model: settings of another kind": ("model", written("config.json", b"[]")),
    "model: settings that are cut": ("model", cut("config.json", 30)),
    "model: a type to come": ("model", edited("config.json", model_type="future")),
    "model: no type": ("model", edited("config.json", model_type=...)),
    "model: another size": ("model", edited("config.json", hidden_size=96)),
    "model: a size of text": ("model", edited("config.json", hidden_size="x")),
    "model: a pickle": ("model", pickled(MODEL, "pytorch_model.bin")),
    "model: a tokenizer that is cut": ("model", cut("tokenizer.json", 1000)),
    "model: tokenizer settings of another kind": ("model", written("tokenizer_config.json", b"[]")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_sentence(sources, tiny_llama, tokenizer, tmp_path, damage):
    kind, change = DAMAGE[damage]
    folder = tmp_path / "history"
    shutil.copytree(sources / kind, folder)
    change(folder)
    with pytest.raises(ValueError, match=r"^sstoken\.history: ") as error:
        load_given(folder, Run(str(tiny_llama)), new_model(tiny_llama), tokenizer)
    sentence = str(error.value)
    assert str(folder) in sentence
    assert "\n" not in sentence
    assert len(sentence) < 700
    assert "weights_only" not in sentence, "advice to run what is in a file"
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_whole_folder_is_taken(sources, tiny_llama, tokenizer, kind):
    load_given(sources / kind, Run(str(tiny_llama)), new_model(tiny_llama), tokenizer)


def test_a_pickle_of_tensors_is_taken(sources, tiny_llama, tokenizer, tmp_path):
    shutil.copytree(sources / "adapter", tmp_path / "history")
    tensors = load_file(tmp_path / "history" / ADAPTER)
    (tmp_path / "history" / ADAPTER).unlink()
    torch.save(tensors, tmp_path / "history" / "adapter_model.bin")
    load_given(tmp_path / "history", Run(str(tiny_llama)), new_model(tiny_llama), tokenizer)


CODE = """
from pathlib import Path
Path(__file__).with_name("executed").touch()
Path({executed!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class Config(LlamaConfig):
    model_type = {model_type!r}
class Model(LlamaForCausalLM):
    config_class = Config
"""


@pytest.mark.parametrize("model_type", ["llama", "of_its_own"])
def test_code_of_the_folder_is_not_run_for_the_trust_in_another(sources, tiny_llama, tokenizer, tmp_path, model_type):
    folder, executed = tmp_path / "history", tmp_path / "executed"
    shutil.copytree(sources / "model", folder)
    (folder / "code.py").write_text(CODE.format(executed=str(executed), model_type=model_type))
    classes = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    edited("config.json", auto_map=classes, model_type=model_type)(folder)
    edited("tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", None]})(folder)
    run = run_of({"base_model": str(tiny_llama), "trust_remote_code": True})
    if model_type == "llama":
        # The classes of the run serve.
        load_given(folder, run, new_model(tiny_llama), tokenizer)
    else:
        with pytest.raises(ValueError, match=r"^sstoken\.history: .* brings code of its own, which is not run"):
            load_given(folder, run, new_model(tiny_llama), tokenizer)
    assert not executed.exists()


def test_a_damaged_history_stops_a_run_before_training(config, train, sources, tmp_path):
    shutil.copytree(sources / "adapter", tmp_path / "history")
    cut(ADAPTER, 300)(tmp_path / "history")
    with pytest.raises(ValueError, match=r"^sstoken\.history: .*cannot be loaded"):
        train({**config, "sstoken": {"history": str(tmp_path / "history")}})
