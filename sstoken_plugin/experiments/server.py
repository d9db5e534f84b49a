"""Processes that do the work, one for each job, which need not import everything anew where that can be had.

    python -m sstoken_plugin.experiments.server

reads a job a line from stdin and answers with a line that has the exit code of its process. Without a GPU each process
is a fork of this one, which has imported what all of them need and done nothing else: half a minute a run, of which a
small model may not take more. A GPU does not survive a fork; there each process begins from nothing.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

# What a run of Axolotl imports sooner or later.
_PRELOADED = (
    "axolotl.cli.config", "axolotl.cli.utils", "axolotl.common.datasets", "axolotl.train", "axolotl.core.builders",
    "axolotl.core.trainers", "axolotl.loaders", "axolotl.prompt_strategies.chat_template",
    "axolotl.integrations.context_parallel", "axolotl.integrations.expert_parallel", "peft.tuners.lora",
    "transformers.models.llama.modeling_llama", "sstoken_plugin.plugin", "sstoken_plugin.attachment",
    "sstoken_plugin.axolotl.trainer", "sstoken_plugin.experiments.worker", "sstoken_plugin.experiments.prepare",
)  # fmt: skip
_ONCE = "--once"


def main() -> int:
    """Serve until stdin ends."""
    if sys.argv[1:] == [_ONCE]:
        return work(json.load(sys.stdin))
    die_with_parent()
    # Only answers may stand on stdout.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    have = _forked if can_fork() else _spawned
    if have is _forked:
        preload()
    for line in sys.stdin:
        code = have(json.loads(line))
        answers.write(f"{json.dumps(code)}\n")
        answers.flush()
    return 0


def can_fork() -> bool:
    """Tell whether a process may be forked from one that has imported everything."""
    import torch

    return hasattr(os, "fork") and not torch.accelerator.is_available()


def preload() -> None:
    """Import what runs need, as far as it is there: in another release it may be elsewhere."""
    # A run asks for several collections, each of which would look at all that is imported here.
    gc.disable()
    for name in _PRELOADED:
        try:
            import_module(name)
        except ImportError:
            continue
    gc.freeze()
    gc.enable()


def work(job: Mapping[str, Any]) -> int:
    """Do a job in this process, and return its exit code."""
    # The pools of `datasets` outlive a process that is killed, and wait for work forever.
    os.register_at_fork(after_in_child=die_with_parent)
    from sstoken_plugin.experiments import prepare, worker

    return prepare.work(job) if job["kind"] == "prepare" else worker.work(job)


def die_with_parent() -> None:
    """Let the end of the process that started this one, even by SIGKILL, be its own: what it locked is free again."""
    parent = os.getppid()
    if (prctl := _prctl()) is None:
        return
    # PR_SET_PDEATHSIG.
    prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


# Looked up once: a fork of a process with threads must not open libraries.
@cache
def _prctl() -> Callable[..., int] | None:
    """Return a function that Linux has and others have not."""
    try:
        found: Callable[..., int] = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    return found


def _forked(job: Mapping[str, Any]) -> int:
    process = multiprocessing.get_context("fork").Process(target=_in_fork, args=(job,))
    process.start()
    process.join()
    return process.exitcode if process.exitcode is not None else 1


def _in_fork(job: Mapping[str, Any]) -> None:
    die_with_parent()
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.exit(work(job))


def _spawned(job: Mapping[str, Any]) -> int:
    with open(job["log"], "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name if __spec__ else __name__, _ONCE],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=die_with_parent,
        )
        process.communicate(json.dumps(job))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
