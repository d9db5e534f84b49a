"""docs/moving.md: its YAML trains with the plugin's lines, and each key that stops a run does so in its words."""

from __future__ import annotations

import re

import pytest
import yaml
from material import ROOT
from test_example_configs import validate
from test_messages_in_docs import templates

from sstoken_plugin.axolotl.compatibility import check

PAGE = (ROOT / "docs" / "moving.md").read_text()
AXOLOTL, LLAMA_FACTORY = (PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0] for heading in (
    "An Axolotl YAML", "A LLaMA-Factory YAML",
))  # fmt: skip
BEFORE, ADDED = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", AXOLOTL, re.DOTALL))


def rows(section: str) -> list[tuple[str, str]]:
    """The first two cells of a table's rows: keys of a YAML, and what a run says of them."""
    return re.findall(r"^\| (`.+?) \| `(.+?)` \|", section, flags=re.MULTILINE)


def test_the_yaml_is_valid_before_and_after():
    plain = validate(BEFORE)
    moved = validate({**BEFORE, **ADDED})
    assert set(BEFORE) <= set(moved)
    changed = {key for key in BEFORE if plain[key] != moved[key]}
    assert changed == {"plugins"}
    assert set(BEFORE["plugins"]) < set(ADDED["plugins"])


@pytest.mark.parametrize(("keys", "said"), rows(AXOLOTL))
def test_a_key_stops_the_run_in_the_words_of_the_page(keys, said):
    settings = yaml.safe_load(re.findall(r"`(.+?)`", keys)[0])
    if "fsdp_config" in keys:
        settings["fsdp_config"] = {"version": 1}
    with pytest.raises(ValueError, match=re.escape(said)):
        check({**BEFORE, **ADDED, **settings})


@pytest.mark.parametrize(("keys", "said"), rows(LLAMA_FACTORY))
def test_what_llama_factory_users_are_told_is_in_the_code(keys, said):
    assert any(said in text for text in templates())


def test_both_tables_are_read():
    assert min(len(rows(AXOLOTL)), len(rows(LLAMA_FACTORY))) >= 10
