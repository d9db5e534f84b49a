"""A plugin of Axolotl that measures, while a selection trains, how much of the noise it drops.

Named in `plugins:` of a run on the data of `evidence.known_truth`, it writes noise.json into the run's `output_dir`. It
looks at every scored step and changes nothing; a run without a selection has nothing to look at, and no such file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from axolotl.integrations.base import BasePlugin
from numpy.typing import NDArray
from scipy.stats import rankdata
from transformers import TrainerCallback

from evidence.tasks import ANSWER_DIGITS, ANSWER_PLACE, Bools, Ints, is_noise
from sstoken_plugin.engine.step import ScoredStep
from sstoken_plugin.selection.samples import BatchLayout

NAME = "noise.json"
# Of a run, each a span of steps whose tokens are counted together.
POINTS = 20
SIGNALS = ("rel", "attention", "current")

Floats = NDArray[np.float32]


class NoisePlugin(BasePlugin):
    """`plugins: [evidence.noise.NoisePlugin]`."""

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        """Return what begins to watch when the training does: only then is the selection sure to be there."""
        return [_Callback(trainer, Path(cfg.output_dir) / NAME)]


class _Callback(TrainerCallback):
    """Watches from the beginning of a training, and writes what was seen at its end.

    Args:
        trainer: the trainer.
        file: what is written. A training that resumes has only what came after.
    """

    def __init__(self, trainer: Any, file: Path):
        self._trainer = trainer
        self._file = file
        self._watch: NoiseWatch | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch, if there is a selection."""
        session = getattr(self._trainer, "sstoken", None)
        if session is None or self._watch is not None:
            return
        samples = session.samples
        ids, labels = (torch.tensor(samples[name][:], dtype=torch.long) for name in ("input_ids", "labels"))
        trainer = self._trainer
        self._watch = NoiseWatch(ids, labels, lambda: trainer.state.global_step, state.max_steps)
        session.watchers.append(self._watch)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what was seen."""
        if self._watch is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(self._watch.found(), indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Seen:
    """The response digits of one or more steps; ends of turns are left out.

    N is the number of samples.

    Attributes:
        noise: bool [N, ANSWER_DIGITS], whether a digit is not the truth.
        kept: bool likewise, whether it was trained on.
        signals: by name, float32 likewise, higher where a token ranks as better: REL, prompt attention, minus the
            current loss; those that were measured.
    """

    noise: Bools
    kept: Bools
    signals: Mapping[str, Floats]


class NoiseWatch:
    """A watcher of scored steps, see `Session.watchers`.

    Args:
        ids: token ids of the training data, int64 [samples, WIDTH].
        labels: likewise; every response digit must have one.
        step: returns how many optimizer steps are done.
        max_steps: steps of the training.

    Raises:
        ValueError: the data are not those of `evidence.tasks`.
    """

    def __init__(self, ids: torch.Tensor, labels: torch.Tensor, step: Callable[[], int], max_steps: int):
        noise = is_noise(ids.numpy())
        layout = BatchLayout.of({"input_ids": ids, "labels": labels})
        if len(layout.lengths) != len(ids) or (labels[:, ANSWER_PLACE:] < 0).any():
            raise ValueError("datasets: a response digit has no label, so that noise cannot be told among all of them.")
        # A step shows hashes of its samples, not their tokens.
        fingerprints = layout.fingerprint.numpy()
        order = np.argsort(fingerprints)
        self._fingerprints, self._noise = fingerprints[order], noise[order]
        self._step = step
        self._max_steps = max_steps
        self._seen: dict[int, list[Seen]] = {}

    def __call__(self, scored: ScoredStep) -> None:
        """Take note of a step."""
        layout, scores = scored.layout, scored.scores
        digits = (layout.index_in_sample < ANSWER_DIGITS).cpu().numpy()
        places = self._rows(layout.fingerprint.cpu().numpy())

        def of_digits(values: torch.Tensor) -> Any:
            return values.detach().cpu().numpy()[digits].reshape(len(places), ANSWER_DIGITS)

        signals = {"rel": scores.rel, "attention": scores.attention, "current": -scores.current}
        measured = {name: of_digits(values.float()) for name, values in signals.items() if values is not None}
        point = self._step() * POINTS // self._max_steps
        self._seen.setdefault(point, []).append(Seen(self._noise[places], of_digits(scored.kept), measured))

    def found(self) -> dict[str, Any]:
        """Return what was seen, see `measures`, at each point and in the whole run; steps count from 1."""
        points = []
        for point, seen in sorted(self._seen.items()):
            # Steps s with s * POINTS // max_steps == point.
            first, after = (-(-edge * self._max_steps // POINTS) for edge in (point, point + 1))
            points.append({"first_step": first + 1, "last_step": after, **measures(seen)})
        return {"points": points, "whole": measures([one for seen in self._seen.values() for one in seen])}

    def _rows(self, fingerprints: Ints) -> Ints:
        places = np.searchsorted(self._fingerprints, fingerprints).clip(max=len(self._fingerprints) - 1)
        if not (self._fingerprints[places] == fingerprints).all():
            raise ValueError("datasets: a batch has a sample that is not in the training data.")
        return places


def measures(seen: Sequence[Seen]) -> dict[str, Any]:
    """Return what steps show together.

    Returns:
        Counts of response digits: `digits`, `noise`, `dropped`, `dropped_noise`. Shares, None where there is nothing to
        divide by: `precision`, of the dropped ones that are noise; `recall`, of the noise that is dropped;
        `noise_among_kept`. `auc`: by signal, the chance that a clean digit has a higher value than a noisy one, among
        all of the steps in which it was measured; `auc_in_sample`: the same for two digits of one sample, which is
        what ranks against each other. None where it was not measured, or there is no noise.
    """
    noise, kept = (np.concatenate([getattr(one, name) for one in seen]) for name in ("noise", "kept"))
    dropped, both = int((~kept).sum()), int((noise & ~kept).sum())
    found: dict[str, Any] = {
        "digits": noise.size,
        "noise": int(noise.sum()),
        "dropped": dropped,
        "dropped_noise": both,
        "precision": _share(both, dropped),
        "recall": _share(both, int(noise.sum())),
        "noise_among_kept": _share(int((noise & kept).sum()), int(kept.sum())),
        "auc": {},
        "auc_in_sample": {},
    }
    for name in SIGNALS:
        measured = [one for one in seen if name in one.signals]
        if measured:
            values = np.concatenate([one.signals[name] for one in measured])
            marks = np.concatenate([one.noise for one in measured])
        else:
            values, marks = np.zeros((0, ANSWER_DIGITS), np.float32), np.zeros((0, ANSWER_DIGITS), np.bool_)
        found["auc"][name] = auc(values, marks)
        found["auc_in_sample"][name] = auc_in_sample(values, marks)
    return found


def auc(values: Floats, noise: Bools) -> float | None:
    """Return the chance that a clean token has a higher value than a noisy one, ties by half; None without a pair.

    Args:
        values: of tokens, in any shape.
        noise: bool, in the same shape.
    """
    noisy = int(noise.sum())
    clean = noise.size - noisy
    if not noisy or not clean:
        return None
    ranks = rankdata(values.ravel())
    return float((ranks[~noise.ravel()].sum() - clean * (clean + 1) / 2) / (clean * noisy))


def auc_in_sample(values: Floats, noise: Bools) -> float | None:
    """Return the same over pairs of the same sample; both arguments have the shape [samples, tokens]."""
    pairs = ~noise[:, :, None] & noise[:, None, :]
    above = values[:, :, None] > values[:, None, :]
    level = values[:, :, None] == values[:, None, :]
    return _share(float((pairs & above).sum() + 0.5 * (pairs & level).sum()), int(pairs.sum()))


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
