"""Write the table of model families into docs/support.md; with --check, fail where it is out of date.

It makes a tiny model of every family of the installed transformers and trains it, which takes minutes.
"""

import sys
import warnings
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import material  # noqa: E402, F401 (it sets up what transformers finds)
import transformers  # noqa: E402
from families import ALL  # noqa: E402
from family_checks import examine, verdict  # noqa: E402

from scripts.write_examples import PAGE, placed  # noqa: E402

START, END = "<!-- families, by scripts/write_support.py -->", "<!-- end of families -->"
INTRODUCTION = """transformers {version} lists {number} classes of language models, with images or without; a tiny
random model of each was trained on text alone (`tests/test_families.py`). "Right": the loss when everything is kept is
the model's own, with whatever the model can add to it (losses of routers, z-losses); prompt attention is that of its
own attention matrices, in the last layer that sees the whole sample; under LoRA the history is the base model,
gradients and a step of AdamW are those of plain training; all to 1e-5. "Refused": in these words, before the first
step."""


def main() -> None:
    """Write the table, or compare."""
    page = PAGE.read_text(encoding="utf-8")
    written = placed(page, table(), START, END)
    if "--check" in sys.argv:
        sys.exit(f"{PAGE} is out of date: python {__file__}" if written != page else 0)
    PAGE.write_text(written, encoding="utf-8")


def table() -> str:
    """Return the families, those with the same verdict in one row."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    rows: dict[str, list[str]] = defaultdict(list)
    for name, family in ALL.items():
        rows[verdict(family, examine(family))].append(f"`{name}`")
    lines = [
        f"| {words} | {len(names)} | {', '.join(sorted(names))} |" for words, names in sorted(rows.items(), key=rank)
    ]
    introduction = INTRODUCTION.format(version=transformers.__version__, number=len(ALL))
    return "\n".join(
        [introduction, "", "| verdict | number | names of configurations |", "| --- | --- | --- |", *lines]
    )


def rank(row: tuple[str, list[str]]) -> tuple[bool, bool, int]:
    """What is right first, and large rows before small ones."""
    words, names = row
    return not words.startswith("right"), words.startswith("not made"), -len(names)


if __name__ == "__main__":
    main()
