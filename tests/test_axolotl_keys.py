"""A key of an Axolotl to come is found, and fails the tests if it names a loss, a trainer or an adapter."""

from __future__ import annotations

import ast
from collections import Counter
from typing import Literal

import pytest
import yaml
from material import ROOT
from pydantic import AliasChoices, BaseModel, Field

from scripts import axolotl_keys
from sstoken_plugin.axolotl import compatibility, refusals

VERDICTS = yaml.safe_load(axolotl_keys.OPINIONS.read_text())


@pytest.fixture(scope="module")
def installed():
    """The keys of the installed Axolotl; all of them, or a warning fails."""

    def fail(text):
        raise AssertionError(text)

    return axolotl_keys.installed_keys(warn=fail)


@pytest.fixture(scope="module")
def known():
    return axolotl_keys.opinions()


@pytest.fixture(scope="module")
def settled(installed, known):
    """Opinions on every installed key, so that one that is new fails the first test alone."""
    return [*known, *axolotl_keys.without_opinion(installed, known)]


def test_there_is_an_opinion_on_every_dangerous_key(installed, known):
    assert axolotl_keys.complaint(axolotl_keys.without_opinion(installed, known)) is None


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("use_new_loss", "bool | None"),
        ("use_xyz", "bool | None Enable XYZ: per-token cross entropy weighted by chance"),
        ("adapter=newlora", ""),
        ("new_block.label_noise", "float"),
        ("datasets.train_on_numbers", "bool | None"),
        ("fsdp_config.expert_parallel", "int"),
        ("plugins=xyz", ""),
        ("expert_parallel_loss_scale", "float"),
        ("context_parallel.auto_size", "bool"),
        ("use_rl_rewards", "bool"),
    ],
)
def test_a_dangerous_key_to_come_fails_the_check(installed, settled, key, text):
    unknown = axolotl_keys.without_opinion({**installed, key: text}, settled)
    sentence = axolotl_keys.complaint(unknown)
    assert f"looked at: {key}; refuse" in sentence
    assert "refusals.py" in sentence
    assert "tests/data/axolotl_keys.yaml" in sentence
    assert next(axolotl_keys.lines(installed, unknown)).startswith(f"! {key} (")


def test_a_harmless_key_to_come_is_listed_and_passes(installed, settled):
    keys = {**installed, "use_new_tracker": "bool | None Send metrics there", "optimizer=new": ""}
    unknown = axolotl_keys.without_opinion(keys, settled)
    assert unknown.keys() >= {"use_new_tracker", "optimizer=new"}
    assert axolotl_keys.complaint(unknown) is None
    *listing, summary = axolotl_keys.lines(keys, unknown)
    assert "  use_new_tracker" in listing
    assert f"has {len(keys)} keys; there is no opinion on {len(unknown)} of them, 0 of which" in summary


@pytest.mark.parametrize("key", ["use_eaft", "use_dft", "diffusion_lm", "diffusion_decision", "adapter=mixlora"])
def test_what_was_dangerous_would_have_been_found(installed, key):
    if key not in installed:
        pytest.skip("not in this release")
    assert axolotl_keys.without_opinion({key: installed[key]}, [])[key]


def test_keys_are_found_wherever_axolotl_has_them(installed):
    """In the schema, under another name, in blocks, in lists of blocks, in plugins, among values."""
    assert installed.keys() >= {
        "learning_rate", "model_config", "peft.loftq_config.loftq_bits", "datasets.type.field_output",
        "fsdp_config.version", "kd_trainer", "hatchery.loss_fn", "llmcompressor.recipe", "adapter=lora", "adapter=mora",
        "optimizer=muon", "optimizer=adamw_torch", "rl=dpo", "attn_implementation=sdpa", "plugins=liger",
    }  # fmt: skip


class Inner(BaseModel):
    deep: int = Field(default=1, description="Weight of the loss")
    again: Inner | None = None


class Other(BaseModel):
    deep: str = ""
    other: Literal["a"] = "a"


class Outer(BaseModel):
    blocks: list[Inner | Other] | None = None
    new: int = Field(
        default=0, validation_alias=AliasChoices("new", "old"), json_schema_extra={"description": "Extra."}
    )


def test_a_schema_is_walked_through_lists_unions_aliases_and_itself():
    keys = axolotl_keys.keys_of(Outer)
    assert list(keys) == ["blocks", "blocks.deep", "blocks.again", "blocks.other", "new", "old"]
    assert keys["old"] == "<class 'int'> Extra."
    assert "Weight of the loss" in keys["blocks.deep"]
    assert "str" in keys["blocks.deep"]


def test_values_that_axolotl_compares_a_key_with_are_found():
    source = """
if cfg.adapter == "a" or data.get("adapter") in ["b", "c"] or cfg["adapter"] not in {"d"}: pass
if adapter and adapter != "e" or cfg.other == "f" or data.get("other") == "g": pass
"""
    assert axolotl_keys.compared_with(ast.parse(source), "adapter") == set("abcde")


def test_each_key_has_one_opinion_and_each_opinion_a_reason():
    assert VERDICTS.keys() <= {"right", "read", "refused", "elsewhere", "undecided"}
    groups = [group for verdict in VERDICTS.values() for group in verdict]
    assert all(group.keys() == {"why", "keys"} and group["why"] and group["keys"] for group in groups)
    keys = Counter(key for group in groups for key in group["keys"].split())
    assert [key for key, count in keys.items() if count > 1] == []
    tables = {
        *refusals.REFUSED,
        *refusals.REFUSED_ABOVE_ONE,
        *(key.replace(": ", "=") for key in refusals.UNTESTED),
    }
    tables |= {*refusals.REFUSED_WITH_CACHE}
    assert keys.keys() & {*tables, *compatibility.fused_losses(dict.fromkeys(keys, True))} == set()


def test_what_is_right_stands_in_the_test_that_shows_it():
    for group in VERDICTS["right"]:
        text = (ROOT / group["why"]).read_text()
        missing = [key for key in group["keys"].split() if f'"{key.rpartition(".")[2].rpartition("=")[2]}"' not in text]
        assert missing == [], group["why"]
