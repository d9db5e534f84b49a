"""Fixtures: the real model, tiny models with its tokenizer, and real Axolotl runs inside this process."""

from __future__ import annotations

import copy
import functools
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.update(AXOLOTL_DO_NOT_TRACK="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
# Two processes that fight over two cores with two threads each are ten times slower than one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import yaml

if not torch.cuda.is_available():
    # With a torch for GPUs comes Triton, and with that these kernels count as usable: transformers then calls them for
    # tensors of a CPU.
    sys.modules.update(dict.fromkeys(("fla", "causal_conv1d")))

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
MODELS = ROOT / ".cache" / "models"
AXOLOTL = tuple(int(part) for part in version("axolotl").split(".")[:2])
sys.path.insert(0, str(ROOT))

# Where a release of Axolotl, transformers or torch can break something: .ci/run runs these files on a second one too.
CORE = (
    "attention", "axolotl_keys", "data_formats", "history", "history_cache", "losses", "not_named", "output_head",
    "plugin_name", "refusals", "samples", "selection", "training",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") in CORE:
            item.add_marker(pytest.mark.core)


@pytest.fixture(autouse=True)
def environment() -> Any:
    """Take back what a run leaves in the environment: Axolotl tells accelerate there about engines and ranks."""
    saved = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct, float32."""
    from demo.model import unpack

    folder = MODELS / "smollm2-135m-instruct"
    unpack(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def tiny_llama(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama of 3 layers with SmolLM2's tokenizer."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"), tokenizer)


def write_tiny_llama(folder: Path, tokenizer: Any) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def trained_adapter(tiny_llama: Path, tmp_path: Path) -> str:
    """An adapter with an effect, of another rank and on other layers than the run's."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama),
        LoraConfig(r=2, lora_alpha=16, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A headless browser for report pages."""
    from browser import open_browser

    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


# For runs whose weights are compared: else Adam's first step is as long for a gradient that is nothing but rounding as
# for any other.
STEADY = {"adam_epsilon": 1e-3}


def chat(user: str, assistant: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 24 chats of different lengths, some with two turns."""
    return write_chats(tmp_path_factory.mktemp("data") / "chats.jsonl")


def write_chats(file: Path) -> Path:
    words = ["red", "blue", "green", "seven", "river", "stone", "garden", "winter", "music", "paper", "window", "door"]
    lines = []
    for index in range(24):
        question = f"Say {' and '.join(words[(index + j) % 12] for j in range(1 + index % 4))}."
        answer = " ".join(words[(index * 5 + j * 7) % 12] for j in range(2 + index % 9)) + "."
        line = chat(question, answer)
        if index % 3 == 0:
            line["messages"] += chat("And again?", answer.upper())["messages"]
        lines.append(json.dumps(line))
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="session")
def small_run(tiny_llama: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small LoRA run of a few steps on a CPU."""
    folder = tmp_path_factory.mktemp("run")
    return {
        "base_model": str(tiny_llama),
        "plugins": ["sstoken"],
        "datasets": [{"path": str(chats), "type": "chat_template", "field_messages": "messages"}],
        "chat_template": "tokenizer_default",
        "dataset_prepared_path": str(folder / "prepared"),
        "dataset_num_proc": 1,
        "output_dir": str(folder / "out"),
        "sequence_len": 256,
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "learning_rate": 0.02,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "attn_implementation": "sdpa",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 42,
        # In 0.18 its own path for packed rows calls a kernel for GPUs without looking where it is.
        **({"sdpa_varlen": False} if AXOLOTL == (0, 18) else {}),
    }


@pytest.fixture
def config(small_run: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The small run in folders of its own; tests change what they are about."""
    folders = {"dataset_prepared_path": str(tmp_path / "prepared"), "output_dir": str(tmp_path / "out")}
    return {**copy.deepcopy(small_run), **folders}


def write(config: dict[str, Any], folder: Path) -> Path:
    """Write a configuration as YAML and return the file."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def load(config: dict[str, Any], folder: Path, **overrides: Any) -> Any:
    """Load and validate a configuration as Axolotl's commands do."""
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager

    PluginManager.get_instance().plugins.clear()
    return load_cfg(str(write(copy.deepcopy(config), folder)), **overrides)


@functools.cache
def prepare_process() -> None:
    """Take out of every run what costs seconds and has nothing to do with it; once Axolotl is imported."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    read, tokenizers = AutoTokenizer.from_pretrained, {}

    def read_once(path: Any, *arguments: Any, **options: Any) -> Any:
        if not Path(path).is_dir():
            return read(path, *arguments, **options)
        files = sorted((file.name, file.stat().st_mtime_ns) for file in Path(path).iterdir())
        key = repr((path, files, arguments, options))
        if key not in tokenizers:
            tokenizers[key] = read(path, *arguments, **options)
        return copy.deepcopy(tokenizers[key])

    # A run reads its tokenizer twice, a third of its time.
    AutoTokenizer.from_pretrained = read_once  # type: ignore[method-assign]
    save = Dataset.save_to_disk
    # Axolotl has a pool of one process made to write 24 rows.
    Dataset.save_to_disk = lambda self, path, num_proc=None, **kwargs: save(self, path, **kwargs)  # type: ignore[method-assign]
    # It collects garbage four times a run, among a million objects of libraries.
    gc.collect()
    gc.freeze()


def skip_what_is_refused(config: dict[str, Any]) -> None:
    """Skip where this release of Axolotl cannot do what is tested; test_refusals.py shows that we say so."""
    if config.get("sample_packing") and AXOLOTL < (0, 18):
        pytest.skip("samples of a packed row see each other in this release")


def run_axolotl(config: dict[str, Any], folder: Path, **overrides: Any) -> SimpleNamespace:
    """Run Axolotl's training in this process."""
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager
    from axolotl.train import train as axolotl_train
    from transformers import set_seed

    prepare_process()
    skip_what_is_refused(config)
    cfg = load(config, folder, **overrides)
    # Axolotl seeds after it has drawn the adapter's weights; in a fresh process they are the same each time.
    set_seed(0)
    plugins = PluginManager.get_instance()
    data = plugins.load_datasets(cfg, preprocess=False) or load_datasets(cfg=cfg)
    model, _, trainer = axolotl_train(cfg=cfg, dataset_meta=data)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return SimpleNamespace(
        cfg=cfg, trainer=trainer, model=model, data=data.train_dataset, lines=lines, weights=weights,
        losses=[line["loss"] for line in lines],
    )  # fmt: skip


def report_callback(trainer: Any) -> Any:
    """Return what writes the page of a trainer."""
    from sstoken_plugin.report.callback import ReportCallback

    (found,) = [each for each in trainer.callback_handler.callbacks if isinstance(each, ReportCallback)]
    return found


@pytest.fixture
def train(tmp_path: Path) -> Any:
    """Run Axolotl's training: `train(config, **overrides)` -> log lines, trainer, model."""
    # Its import configures logging, which takes the handlers of `caplog` away if it happens during the test itself.
    import axolotl.cli  # noqa: F401

    return functools.partial(run_axolotl, folder=tmp_path)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Every training step of a run, with the batch it was scored on."""
    from sstoken_plugin.engine.step import TokenSelection
    from sstoken_plugin.training import session

    taken, batches = [], []
    begin, count = TokenSelection.begin, session.counts

    def remember(self, model, batch, phase):
        batches.append({key: value.clone() for key, value in batch.items()})
        return begin(self, model, batch, phase)

    def record(step):
        taken.append((step, batches[-1]))
        return count(step)

    monkeypatch.setattr(TokenSelection, "begin", remember)
    monkeypatch.setattr(session, "counts", record)
    return taken


@pytest.fixture
def accelerate_run() -> Any:
    """Run `accelerate launch -m axolotl.cli.train FILE ...` and return what it printed."""

    def run(
        file: Path, *arguments: str, command: Sequence[str] = ("accelerate", "launch", "-m", "axolotl.cli.train")
    ) -> str:
        return run_command(*command, str(file), *arguments).stdout

    return run


def run_command(*command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Run a command of this environment; stderr is part of stdout. Ranks may wait for each other, we do not."""
    scripts = Path(sys.executable).parent
    result = subprocess.run(
        [str(scripts / command[0]), *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", **environment},
    )
    assert not check or result.returncode == 0, result.stdout[-5000:]
    return result
