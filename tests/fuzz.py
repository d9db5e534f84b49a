"""Throw mutated example configurations at Axolotl with the plugin: `python tests/fuzz.py --count 500 --seed 0`.

Each configuration must validate and take a training step on a tiny model, or stop with a message that names a key.
Configuration N of a seed is always the same: `--first N --count 1` repeats it, and `--show` prints its YAML.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import yaml
from fuzz_yaml import generate, to_yaml
from material import MODELS, write_chats, write_tiny_llama

import sstoken_plugin
import sstoken_startup
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.selectors import SELECTORS

LIMIT_SECONDS = 120
BAD = ("HUNG", "FELL IN PLUGIN", "NAMES NO KEY", "SILENT")
OUTCOMES = ("trained", "refused by us", "refused by Axolotl", "fell in Axolotl", *BAD)


def prepare(folder: Path) -> dict[str, str]:
    """Write model, adapter and data once, and import what every run needs; return the paths by their names."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaForCausalLM

    from demo.model import unpack

    unpack(MODELS / "smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "smollm2-135m-instruct")
    write_tiny_llama(folder / "model", tokenizer)
    write_chats(folder / "chats.jsonl")
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(LlamaForCausalLM.from_pretrained(folder / "model"), adapter).save_pretrained(folder / "adapter")
    (folder / "empty").mkdir()
    (folder / "file").write_text("nothing")

    for module in (
        "axolotl.cli.train",
        "axolotl.common.datasets",
        "bitsandbytes",
        "sstoken_plugin.axolotl.trainer",
        "sstoken_plugin.training.callbacks",
    ):
        importlib.import_module(module)

    # One folder of prepared data for all: Axolotl starts processes to write one, which takes longer than a run.
    names = {"PREPARED": "prepared", "MODEL": "model", "ADAPTER": "adapter", "CHATS": "chats.jsonl", "EMPTY": "empty"}
    names |= {"FILE": "file", "MISSING": "no/such"}
    return {key: str(folder / name) for key, name in names.items()}


def run_one(seed: int, number: int, common: dict[str, str], folder: Path) -> None:
    """In a child: train one configuration and write `result.json`."""
    os.setsid()
    folder.mkdir()
    os.chdir(folder)
    log = os.open("log.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    example, pairs = generate(seed, number)
    paths = common | {"OUT": str(folder / "out"), "CACHE": str(folder / "cache")}
    text = to_yaml(pairs, paths)
    Path("config.yaml").write_text(text, encoding="utf-8")
    outcome, detail, stack = judge(text)
    if outcome == "FELL IN PLUGIN":
        # Our trainer is on the stack of everything that goes wrong in a step: is it ours without the plugin?
        child = os.fork()
        if not child:
            Path("control.json").write_text(json.dumps(judge(text, without_plugin=True)))
            os._exit(0)
        os.waitpid(child, 0)
        control = json.loads(Path("control.json").read_text())
        if control[0] in ("fell in Axolotl", "refused by Axolotl") and control[1] == detail:
            outcome = "fell in Axolotl"
    Path("result.json").write_text(json.dumps([outcome, f"[{example}] {detail}", stack]))


def judge(text: str, *, without_plugin: bool = False) -> tuple[str, str, str]:
    """Train a YAML in this process and return the outcome, the message and the stack."""
    try:
        lines, selection = train(text, without_plugin=without_plugin)
    except (Exception, SystemExit) as error:
        detail = f"{type(error).__name__}: {error}"
        return outcome_of(error), detail, "".join(traceback.format_exception(error))
    return (*outcome_of_training(text, lines, selection), "")


def train(text: str, *, without_plugin: bool) -> tuple[list[dict[str, Any]], Any]:
    """Do what `python -m axolotl.cli.train` does; return the logged lines and the selection."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager
    from axolotl.train import train as axolotl_train

    file = Path("config.yaml")
    if without_plugin:
        raw = yaml.safe_load(text)
        raw = {key: value for key, value in raw.items() if key != "plugins" and not key.startswith("sstoken")}
        file = Path("control.yaml")
        file.write_text(yaml.safe_dump(raw))
    plugins = PluginManager.get_instance()
    plugins.plugins.clear()
    cfg = load_cfg(str(file))
    data = plugins.load_datasets(cfg, preprocess=False) or load_datasets(cfg=cfg)
    _, _, trainer = axolotl_train(cfg=cfg, dataset_meta=data)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return lines, getattr(getattr(trainer, "sstoken", None), "selection", None)


def outcome_of_training(text: str, lines: list[dict[str, Any]], selection: Any) -> tuple[str, str]:
    """A run that trains must have selected, with the settings that the YAML gives."""
    raw = yaml.safe_load(text)
    wanted = dict(raw.get("sstoken") or {})
    wanted |= {key.removeprefix("sstoken."): value for key, value in raw.items() if key.startswith("sstoken.")}
    if "sstoken" not in str(raw.get("plugins")):
        if raw.get("sstoken") is not None:
            return "SILENT", "the run trained without the plugin, and its block was read by nobody"
        return "trained", "without the plugin, which the YAML does not name"
    if selection is None:
        return "SILENT", "the run trained without the selection"
    if selection.config != SSTokenConfig.from_block(wanted):
        return "SILENT", f"other settings are in force: {selection.config}"
    kept = [line.get("sstoken/selected_ratio") for line in lines]
    if kept and None in kept and "no response token" not in Path("log.txt").read_text(errors="replace"):
        return "SILENT", f"no metrics of the selection in {lines}"
    row = SELECTORS[selection.config.selector]
    # A threshold may keep any share.
    ratio = 1.0 if row.keeps_all else selection.config.ratio if row.reads_ratio else 0.0
    if any(share is not None and not ratio - 1e-6 <= share <= 1 for share in kept):
        return "SILENT", f"kept {kept} instead of {ratio}"
    return "trained", f"{len(lines)} lines, kept {kept}"


def outcome_of(error: BaseException) -> str:
    """Tell a refusal from a fault, and ours from Axolotl's."""
    from pydantic import ValidationError

    ours = (os.path.dirname(sstoken_plugin.__file__) + os.sep, sstoken_startup.__file__)
    origins = [error]
    if isinstance(error, ValidationError):
        # Our refusals reach the user inside Axolotl's list of faults.
        faults = error.errors()
        origins = [
            fault["ctx"]["error"] for fault in faults if isinstance(fault.get("ctx", {}).get("error"), Exception)
        ]
        if not any(_files(origin)[-1:] and _files(origin)[-1].startswith(ours) for origin in origins):
            named = any("sstoken" in map(str, fault["loc"]) for fault in faults)
            return "refused by us" if named else "refused by Axolotl"
    for origin in origins:
        files = _files(origin)
        project = [file for file in files if file.startswith(ours) or f"{os.sep}axolotl{os.sep}" in file]
        if not project or not project[-1].startswith(ours):
            continue
        if not isinstance(origin, ValueError) or not files[-1].startswith(ours):
            return "FELL IN PLUGIN"
        return "refused by us" if names_a_key(str(origin)) else "NAMES NO KEY"
    if isinstance(error, SystemExit):
        return "refused by Axolotl"
    last = [file for file in _files(error) if f"{os.sep}axolotl{os.sep}" in file][-1:]
    is_check = bool(last) and re.search(r"schemas|utils/config|cli/config", last[0]) is not None
    return "refused by Axolotl" if isinstance(error, ValueError) and is_check else "fell in Axolotl"


def _files(error: BaseException) -> list[str]:
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


def names_a_key(message: str) -> bool:
    """Whether a message of ours names a key of the YAML, which it does as `key: value`, `sstoken.key` or in ticks."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    keys = {"sstoken", *AxolotlInputConfig.model_fields}
    return bool(keys & set(re.findall(r"[a-zA-Z_0-9]+", message)))


def run_all(numbers: list[int], seed: int, jobs: int, folder: Path, keep: bool) -> dict[int, list[str]]:
    """Run each configuration in a child forked from this process, `jobs` at a time."""
    common = prepare(folder)
    waiting, running = collections.deque(numbers), {}
    results: dict[int, list[str]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number = waiting.popleft()
            sys.stdout.flush()
            child = os.fork()
            if not child:
                with contextlib.suppress(BaseException):
                    run_one(seed, number, common, folder / str(number))
                os._exit(0)
            running[child] = (number, time.monotonic())
        time.sleep(0.05)
        for child, (number, start) in list(running.items()):
            home, late = folder / str(number), time.monotonic() - start > LIMIT_SECONDS
            if not late and os.waitpid(child, os.WNOHANG) == (0, 0):
                continue
            if late:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            del running[child]
            result = home / "result.json"
            results[number] = (
                json.loads(result.read_text())
                if result.exists()
                else ["HUNG" if late else "FELL IN PLUGIN", "no result: see its log", ""]
            )
            outcome, detail, stack = results[number]
            print(
                f"{number:4d} {time.monotonic() - start:5.1f} s  {outcome}: {' '.join(detail.split())[:300]}",
                flush=True,
            )
            if outcome in BAD:
                print(stack + (home / "config.yaml").read_text(), flush=True)
            if not keep:
                shutil.rmtree(home)
    return results


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="number of configurations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time")
    parser.add_argument("--keep", type=Path, help="folder, not there yet, that keeps every run's YAML, log and result")
    parser.add_argument("--show", action="store_true", help="print the YAML files and run nothing")
    options = parser.parse_args()
    numbers = list(range(options.first, options.first + options.count))
    if options.show:
        for number in numbers:
            example, pairs = generate(options.seed, number)
            print(f"# {number}, from {example}\n{to_yaml(pairs, {})}")
        return 0
    folder = options.keep or Path(tempfile.mkdtemp(prefix="sstoken-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        results = run_all(numbers, options.seed, options.jobs, folder.resolve(), keep=options.keep is not None)
    finally:
        if options.keep is None:
            shutil.rmtree(folder)
    counts = collections.Counter(outcome for outcome, _, _ in results.values())
    fallen = collections.Counter(
        detail.split("] ", 1)[1][:100] for kind, detail, _ in results.values() if "fell in" in kind
    )
    for message, count in fallen.most_common():
        print(f"Axolotl's own: {count} x {' '.join(message.split())}")
    print(", ".join(f"{outcome}: {counts[outcome]}" for outcome in OUTCOMES))
    return int(any(counts[outcome] for outcome in BAD))


if __name__ == "__main__":
    sys.exit(main())
