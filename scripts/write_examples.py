"""Write into docs/support.md what the plugin refuses and warns of, and how many of Axolotl's examples that touches.

FOLDER is made by `axolotl fetch examples`. With --check, fail where the page is out of date.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(AXOLOTL_DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")

from scripts.example_verdicts import Outcome, Verdict, judge_all  # noqa: E402
from sstoken_plugin.axolotl.refusals import REFUSALS, UNTESTED  # noqa: E402
from sstoken_plugin.base.refusal import Refusal  # noqa: E402

PAGE = ROOT / "docs" / "support.md"
BEGIN = "<!-- Written by `python scripts/write_examples.py FOLDER`: begin -->"
END = "<!-- Written by `python scripts/write_examples.py FOLDER`: end -->"

OUTCOMES: dict[Outcome, str] = {
    "accepted": "accepted",
    "warned": "accepted with a warning of a way of training that has not been run",
    "refused": "refused by the plugin",
    "refused by Axolotl": "refused by Axolotl itself, without the plugin too",
}
NOT_RUN = "has not been run with ssToken yet"
COMPARE = "goes on; compare a short run with `selector: all`"
# So many folders are named for a key, the others counted.
NAMED = 4


def tables(verdicts: Sequence[Verdict]) -> str:
    """Return what stands between the two marks of the page."""
    accepted = [verdict for verdict in verdicts if verdict.outcome in ("accepted", "warned")]
    seeing = sum(verdict.multimodal is True for verdict in accepted)
    unknown = sum(verdict.multimodal is None for verdict in accepted)
    return "\n".join(
        [
            f"| with Axolotl {version('axolotl')} | supervised fine-tuning | other training |",
            "| --- | ---: | ---: |",
            *(f"| {text} | {_count(verdicts, outcome, True)} | {_count(verdicts, outcome, False)} |"
              for outcome, text in OUTCOMES.items()),
            f"| all | {sum(each.supervised for each in verdicts)} | {sum(not each.supervised for each in verdicts)} |",
            "",
            f"{seeing} of the accepted ones train on text with a model that can also see or hear, and of {unknown}\n"
            "the type of the model is not known here.",
            "",
            "| key | why | way out | examples, and their folders |",
            "| --- | --- | --- | --- |",
            *map(_refusal_row, REFUSALS, [_touched_by(verdicts, refusal) for refusal in REFUSALS]),
            *_warning_rows(verdicts),
            "",
            "What Axolotl itself refuses, in its words:",
            "",
            *_own_refusals(verdicts),
        ]
    )  # fmt: skip


def placed(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """Return the page with the text between two marks.

    Raises:
        ValueError: the page has no such marks.
    """
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{PAGE.name} must have the lines {begin} and {end}.")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def _count(verdicts: Iterable[Verdict], outcome: Outcome, supervised: bool) -> int:
    return sum(each.outcome == outcome and each.supervised == supervised for each in verdicts)


def _touched_by(verdicts: Iterable[Verdict], refusal: Refusal) -> list[str]:
    return [verdict.name for verdict in verdicts if verdict.refusal == refusal]


def _refusal_row(refusal: Refusal, names: Sequence[str]) -> str:
    key = f"`{refusal.key}`" + (f" ({refusal.case})" if refusal.case else "")
    return _row(key, refusal.reason, refusal.way_out, _folders(names))


def _warning_rows(verdicts: Iterable[Verdict]) -> list[str]:
    touched = {key: [verdict.name for verdict in verdicts if key in verdict.warnings] for key in UNTESTED}
    rows = [_row(f"`{key}`", NOT_RUN, COMPARE, _folders(names)) for key, names in touched.items() if names]
    others = [f"`{key}`" for key, names in touched.items() if not names]
    return rows + ([_row(", ".join(others), NOT_RUN, COMPARE, _folders([]))] if others else [])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _folders(names: Sequence[str]) -> str:
    """Return how many examples there are, and in which folders most of them."""
    counts = Counter(name.partition("/")[0] for name in names).most_common()
    shown = [folder if count == 1 else f"{folder} {count}" for folder, count in counts[:NAMED]]
    rest = len(counts) - len(shown)
    more = f" and {rest} more {'folder' if rest == 1 else 'folders'}" if rest else ""
    return f"{len(names)}: {', '.join(shown)}{more}" if names else "0"


def _own_refusals(verdicts: Iterable[Verdict]) -> list[str]:
    sentences = Counter(_first(each.sentence) for each in verdicts if each.outcome == "refused by Axolotl")
    return [
        f"- {count}: {sentence}" for sentence, count in sorted(sentences.items(), key=lambda one: (-one[1], one[0]))
    ]


def _first(text: str) -> str:
    return text.strip().splitlines()[0].partition(". ")[0].rstrip(".")


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge the examples, print each verdict, and write the page or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="made by `axolotl fetch examples`")
    parser.add_argument("--check", action="store_true", help="fail where the page is out of date, and leave it")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    verdicts = []
    for verdict in judge_all(options.folder):
        verdicts.append(verdict)
        why = verdict.sentence.splitlines()[:1] or [", ".join(verdict.warnings)]
        print(f"{verdict.outcome}: {verdict.name}: {why[0]}".removesuffix(": "), flush=True)
    logging.disable(logging.NOTSET)
    if not verdicts:
        sys.exit(f"{options.folder} holds no YAML with a base_model; make it with `axolotl fetch examples`.")
    page = PAGE.read_text(encoding="utf-8")
    new = placed(page, tables(verdicts))
    if options.check:
        sys.exit(f"{PAGE} is out of date: python {__file__} {options.folder}" if new != page else 0)
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
