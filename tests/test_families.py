"""Every family that transformers lists: loss, prompt attention and adapters, on text alone."""

from __future__ import annotations

import re

import pytest
import transformers
from all_families import ALL, CANNOT, OVERRIDES
from family_checks import NOT_EVEN_PLAIN, OUT_OF_REACH, examine
from packaging.version import Version

CANNOT_RUN = {name: part for cases in CANNOT.values() for name, part in cases.items()}

# What is not right yet, with its cause: a family leaves this list with the fault.
UNSHIFTED = [
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "cpmant", "marian", "mbart", "mvp", "pegasus",
    "plbart", "prophetnet", "trocr", "whisper", "xlm", "xlnet",
]  # fmt: skip
ENCODER_DECODERS = ["florence2", "t5gemma2"]
WRONG_LOSS = {"the model compares logits and labels of the same position": UNSHIFTED, "two models": ENCODER_DECODERS}
# Up to some release after 5.16 its own loss compares logits and labels of the same position.
CHANGES = {"moshi"}
KNOWN: dict[str, dict[str, list[str]]] = {
    "loss": WRONG_LOSS,
    "attention": {
        "two models": ENCODER_DECODERS,
        "the module masks by the name of its attention, which we exchange": [
            "axk2", "deepseek_v32", "glm5_next", "glm_moe_dsa", "hy_v4", "minimax_m3_vl_text",
        ],
        "the module calls its attention twice": ["diffllama"],
        "the module is called many times, and we measure the first": ["hrm_text"],
    },
    "adapter": WRONG_LOSS,
    "trace": {},
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_a_family_is_right_or_known_not_to_be(name: str) -> None:
    found = examine(ALL[name])
    if name in CANNOT_RUN:
        assert found.fails is not None, "it runs now: take it out of CANNOT"
        assert re.search(CANNOT_RUN[name], found.fails)
        return
    assert found.fails is None
    if name in CHANGES:
        return
    wrong = {aspect: getattr(found, aspect) for aspect in KNOWN}
    wrong = {
        aspect: finding for aspect, finding in wrong.items() if finding not in (None, OUT_OF_REACH, NOT_EVEN_PLAIN)
    }
    known = {aspect for aspect, causes in KNOWN.items() if any(name in names for names in causes.values())}
    # What is wrong in one release may be out of reach in another.
    if found.attention == OUT_OF_REACH:
        known.discard("attention")
    assert wrong.keys() == known, wrong
    if found.added not in (None, "none", NOT_EVEN_PLAIN):
        pytest.xfail(f"losses that the model adds are left out: {found.added}")


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.20"), reason="older releases lack some families")
def test_tables_name_families_that_are_there() -> None:
    known = {name for causes in KNOWN.values() for names in causes.values() for name in names}
    assert {*CANNOT_RUN, *OVERRIDES, *known} <= ALL.keys()
