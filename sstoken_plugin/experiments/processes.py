"""Starts the processes of an experiment and reads what they leave."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sstoken_plugin.experiments.config import Experiment
from sstoken_plugin.experiments.preparation import read_preparation, what_was_found
from sstoken_plugin.experiments.results import BUSY, FAULT
from sstoken_plugin.experiments.runs import Run, fingerprint_of_all, first_of_arms, held_out_yaml, train_yaml

_SERVER = (sys.executable, "-m", "sstoken_plugin.experiments.server")
# Of a log that is shown where a process left no sentence.
_TAIL = 400
# In bytes: a disk with less has no room for the sentence of a fault either.
_ROOM = 2**20


class Server:
    """The process that starts all others, begun when the first is asked for. As a context it ends with the block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *fault: object) -> None:
        self.end()

    def start(self, job: Mapping[str, Any]) -> Work:
        """Start a process; the one before must have ended.

        Args:
            job: its job; all that it prints is appended to the file `log`.
        """
        log = Path(job["log"])
        log.parent.mkdir(parents=True, exist_ok=True)
        # Of an attempt before, should this one end before it can say why.
        log.with_name(FAULT).unlink(missing_ok=True)
        line = json.dumps({**job, "started": time.time()}, default=str) + "\n"
        try:
            return self._send(line, log)
        except BrokenPipeError:
            # It has died since the job before.
            self.end()
            return self._send(line, log)

    def _send(self, line: str, log: Path) -> Work:
        if self._process is None or self._process.poll() is not None:
            self._process = self._begin(log)
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return Work(self._process)

    def end(self) -> None:
        """End it, and with it what it has started."""
        if self._process is None:
            return
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        # Closes its pipes, of which it may not have read all.
        with suppress(BrokenPipeError), self._process:
            pass
        self._process = None

    @staticmethod
    def _begin(log: Path) -> subprocess.Popen[str]:
        with log.open("a", encoding="utf-8") as opened:
            return subprocess.Popen(
                _SERVER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=opened,
                text=True,
                env=environment(os.environ),
                # Of a session of its own, so that Ctrl-C reaches this process alone, which ends the other.
                start_new_session=True,
            )


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a run's process: it sees one GPU, the first of those that this process is given.

    With several, a trainer that nobody launched would spread its batches over all of them.
    """
    device = own.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return {**own, "CUDA_VISIBLE_DEVICES": device, "TOKENIZERS_PARALLELISM": "false"}


class Work:
    """A process that the server has started.

    Args:
        server: its process.
    """

    def __init__(self, server: subprocess.Popen[str]):
        self._server = server

    def poll(self, seconds: float) -> int | None:
        """Wait for some time; return the exit code of the process, or of a server that is gone; None while it runs."""
        assert self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], seconds)[0]:
            return None
        if answer := self._server.stdout.readline():
            return int(json.loads(answer))
        # Gone for good, so that the next job begins another.
        return self._server.wait() or 1

    def wait(self) -> int:
        """Return the exit code of the process when it has ended."""
        while (code := self.poll(60)) is None:
            pass
        return code


def run_job(run: Run, experiment: Experiment) -> dict[str, Any]:
    """Return the job of a run's process."""
    return {
        "kind": "run",
        "log": str(run.folder / "log.txt"),
        "folder": str(run.folder),
        "arm": run.arm.name,
        "seed": run.seed,
        "fingerprint": run.fingerprint,
        "settings": run.settings,
        "train": train_yaml(run, experiment.out) if run.is_training else None,
        "held_out": held_out_yaml(run, experiment.out),
        "checkpoint_minutes": experiment.checkpoint_minutes,
        "keep_model": experiment.keep_models,
    }


def prepared(server: Server, experiment: Experiment, runs: Sequence[Run], *, measure: bool) -> dict[str, Any]:
    """Have everything looked at before the first training; return what was found, see `prepare`.

    Args:
        server: starts the process.
        experiment: the experiment.
        runs: all of its runs.
        measure: whether to measure how long a run takes.

    Raises:
        ValueError: the experiment cannot be run as it is; one sentence with key and fix.
    """
    out = experiment.out
    of_all = fingerprint_of_all(runs)
    if (found := read_preparation(out, of_all)) is not None:
        return found
    first = first_of_arms(runs)
    # Plain training takes less time than the others.
    ranking = [run.arm.name for run in first if run.arm.sstoken is not None]
    log = out / "prepare.log"
    job = {
        "kind": "prepare",
        "log": str(log),
        "out": str(out),
        "fingerprint": of_all,
        "evaluations": runs[0].settings["evaluations"],
        "held_out": held_out_yaml(runs[0], out),
        "arms": {run.arm.name: train_yaml(run, out) for run in first},
        "changes": {"changes": experiment.changes}
        | {f"arms.{arm.name}.changes": [*arm.changes] for arm in experiment.arms},
        "measured": (ranking or [first[0].arm.name])[0] if measure else None,
    }
    code = server.start(job).wait()
    # Not whether its data are whole: another command may be looking at them by now.
    if (found := what_was_found(out, of_all)) is not None and code == 0:
        return found
    raise ValueError(f"{_fault(log, code)} (All that was printed is in {log}.)")


def fault_of(run: Run, code: int) -> str:
    """Say why a run's process left no result."""
    log = run.folder / "log.txt"
    return f"{run.name} failed: {_fault(log, code)} (All that was printed is in {log}.)"


def is_busy(code: int) -> bool:
    """Tell whether another process has the run."""
    return code == BUSY


def _fault(log: Path, code: int) -> str:
    file = log.with_name(FAULT)
    if code < 0:
        return f"its process was killed by signal {-code}, as the system does where memory runs out."
    if shutil.disk_usage(log.parent).free < _ROOM:
        return f"the disk of {log.parent} is full; make room, and give the same command again."
    for place in (file, log):
        try:
            told = place.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            continue
        if told:
            return f"{(told if place == file else told.splitlines()[-1])[-_TAIL:].rstrip('.')}."
    return f"its process ended with {code}."
