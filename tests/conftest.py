"""Real Axolotl runs inside this process; what else tests work with is in material.py, which is a plugin of its own."""

from __future__ import annotations

import copy
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
pytest_plugins = ["material"]
# Scripts import this file too, and need what is set up there; pytest wants to be told before anybody imports it.
pytest.register_assert_rewrite("material")

from material import run_command  # noqa: E402

AXOLOTL = tuple(int(part) for part in version("axolotl").split(".")[:2])

# Other trainers have environments of their own: scripts/test_trainers.sh.
collect_ignore = [f"trainers/test_{name}.py" for name in ("trl", "llamafactory", "swift")]

# Where a release of Axolotl, transformers or torch can break something: .ci/run runs these files on a second one too.
CORE = (
    "attention", "axolotl_keys", "data_formats", "history", "output_head", "packaging", "refusals", "training",
)  # fmt: skip
# Without a training, in under two minutes on two cores: CONTRIBUTING.md.
FAST = (
    "aside", "axolotl_keys", "breakdown", "example_tables", "experiments_config", "experiments_measures",
    "experiments_page", "experiments_statistics", "files", "linear_nll", "links_in_docs", "losses",
    "messages_in_docs", "monitor", "packaging", "page_reading", "report", "report_page", "run", "samples",
    "selection", "selectors", "setup", "token_text", "verdict",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for tier, files in (("core", CORE), ("fast", FAST)):
            if item.path.stem.removeprefix("test_") in files:
                item.add_marker(tier)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Keep what a file has imported out of the collections of the next one."""
    result = yield
    if nextitem is None or nextitem.path != item.path:
        forget_libraries()
    return result


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


def forget_libraries() -> None:
    """Leave what is alive out of later garbage collections.

    A run asks for several, and each would look at all objects of all modules that were ever imported: up to seconds.
    """
    gc.collect()
    gc.freeze()


# Once, when the first run has imported all that runs do.
forget_libraries_once = functools.cache(forget_libraries)


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
        found, before = tokenizers.get(key, (None, None))
        if found is None or content(found) != before:
            found = read(path, *arguments, **options)
            tokenizers[key] = found, content(found)
        # Its core, with the vocabulary, takes as long to copy as to read: shared, until a run changes it.
        core = getattr(found, "_tokenizer", None)
        return copy.deepcopy(found, {id(core): core})

    def content(tokenizer: Any) -> Any:
        core = getattr(tokenizer, "_tokenizer", None)
        return core and (core.get_vocab_size(), str(core.post_processor))

    # A run reads its tokenizer twice, a third of its time.
    AutoTokenizer.from_pretrained = read_once  # type: ignore[method-assign]
    save = Dataset.save_to_disk
    # Axolotl has a pool of one process made to write 24 rows.
    Dataset.save_to_disk = lambda self, path, num_proc=None, **kwargs: save(self, path, **kwargs)  # type: ignore[method-assign]
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
    forget_libraries_once()
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

    def remember(self, model, batch, phase, *args, **options):
        batches.append({key: value.clone() for key, value in batch.items()})
        return begin(self, model, batch, phase, *args, **options)

    def record(step):
        taken.append((step, batches[-1]))
        return count(step)

    monkeypatch.setattr(TokenSelection, "begin", remember)
    monkeypatch.setattr(session, "counts", record)
    return taken


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The trained weights at the beginning of every micro-batch."""
    from sstoken_plugin.engine.step import TokenSelection

    found = []
    begin = TokenSelection.begin

    def remember(self, model, batch, phase, *args, **options):
        found.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        return begin(self, model, batch, phase, *args, **options)

    monkeypatch.setattr(TokenSelection, "begin", remember)
    return found


@pytest.fixture
def process_as_before() -> Iterator[Callable[[], None]]:
    """Undo what a run patches into Llama and its loss and switches on in torch, for what follows in this process.

    It is a function, which undoes it at once: a model made after that is the plain one.
    """
    import torch
    from transformers import modeling_utils
    from transformers.loss import loss_utils
    from transformers.models.llama import modeling_llama

    classes = [each for each in vars(modeling_llama).values() if isinstance(each, type)]
    llama = [each for each in classes if each.__module__ == modeling_llama.__name__]
    # `dict` of a class is a copy, with its own attributes only.
    saved = [(place, dict(vars(place))) for place in (modeling_llama, loss_utils, *llama)]
    mapping = dict(loss_utils.LOSS_MAPPING)
    checkpoint, cross_entropy = getattr(modeling_utils, "checkpoint", None), torch.nn.functional.cross_entropy

    def undo() -> None:
        for place, before in saved:
            for name, value in list(vars(place).items()):
                if name not in before:
                    delattr(place, name)
                elif value is not before[name] and name not in ("__dict__", "__weakref__"):
                    setattr(place, name, before[name])
        loss_utils.LOSS_MAPPING.update(mapping)
        if checkpoint is not None:
            modeling_utils.checkpoint = checkpoint
        torch.nn.functional.cross_entropy = cross_entropy
        varlen = sys.modules.get("axolotl.monkeypatch.attention.sdpa_varlen")
        if varlen is not None and hasattr(varlen, "unpatch_sdpa_varlen"):
            varlen.unpatch_sdpa_varlen()
        torch.use_deterministic_algorithms(False)

    yield undo
    undo()
    torch._dynamo.reset()


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The samples of every forward pass of a history model."""
    from sstoken_plugin.history.losses import HistoryLosses

    made = []
    computed = HistoryLosses._computed

    def count(self, model, batch, layout):
        made.append(len(layout.lengths))
        return computed(self, model, batch, layout)

    monkeypatch.setattr(HistoryLosses, "_computed", count)
    return made


@pytest.fixture
def accelerate_run() -> Any:
    """Run `accelerate launch -m axolotl.cli.train FILE ...` and return what it printed."""

    def run(
        file: Path, *arguments: str, command: Sequence[str] = ("accelerate", "launch", "-m", "axolotl.cli.train")
    ) -> str:
        return run_command(*command, str(file), *arguments).stdout

    return run
