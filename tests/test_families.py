"""Every family that transformers lists: loss, prompt attention and adapters, on text alone."""

from __future__ import annotations

import re

import pytest
import transformers
from families import ALL, CANNOT, OVERRIDES
from family_checks import NOT_EVEN_PLAIN, OUT_OF_REACH, examine, verdict
from material import ROOT
from packaging.version import Version

CANNOT_RUN = {name: part for cases in CANNOT.values() for name, part in cases.items()}

REFUSED: dict[str, list[str]] = {
    "computes another loss than the mean loss of the next tokens": [
        "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart",
        "prophetnet", "trocr", "whisper",
    ],
    "sees tokens that are still to come": ["cpmant", "paligemma", "xlm", "xlnet"],
    "has an encoder that reads the text and a decoder that answers it": ["florence2", "t5gemma2"],
}  # fmt: skip
# Up to some release after 5.16 its own loss compares logits and labels of the same position.
REFUSED_IN_SOME_RELEASES = {"moshi"}


def documented() -> dict[str, str]:
    """The verdict of docs/support.md on each family; nothing if it is on another release of transformers."""
    page = (ROOT / "docs" / "support.md").read_text()
    if f"transformers {transformers.__version__} lists" not in page:
        return {}
    rows = re.findall(r"^\| (.+?) \| \d+ \| (`.+`) \|$", page.partition("## Families of models")[2], re.MULTILINE)
    return {name: words for words, names in rows for name in re.findall("`([^`]+)`", names)}


DOCUMENTED = documented()


@pytest.mark.parametrize("name", ALL)
def test_a_family_is_right_or_refused(name: str) -> None:
    found = examine(ALL[name])
    if DOCUMENTED:
        assert DOCUMENTED[name] == verdict(ALL[name], found), "python scripts/write_support.py"
    if name in CANNOT_RUN:
        assert found.fails is not None, "it runs now: take it out of CANNOT"
        assert re.search(CANNOT_RUN[name], found.fails)
        return
    if "offline mode" in (found.fails or ""):
        # Before 5.16 transformers fetches a kernel for some models, whatever the configuration says.
        pytest.skip(str(found.fails))
    assert found.fails is None
    reasons = [reason for reason, names in REFUSED.items() if name in names]
    if reasons:
        assert found.refusal is not None, found
        assert f"base_model: the model {reasons[0]}" in found.refusal
        assert "take sstoken out of `plugins:`" in found.refusal
        return
    if name in REFUSED_IN_SOME_RELEASES and found.refusal is not None:
        return
    assert found.loss is None
    assert found.added in (None, "none", NOT_EVEN_PLAIN)
    assert found.attention in (None, OUT_OF_REACH)
    assert found.adapter in (None, NOT_EVEN_PLAIN)
    assert found.trace is None


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.20"), reason="older releases lack some families")
def test_tables_name_families_that_are_there() -> None:
    refused = {name for names in REFUSED.values() for name in names}
    assert {*CANNOT_RUN, *OVERRIDES, *refused} <= ALL.keys()
