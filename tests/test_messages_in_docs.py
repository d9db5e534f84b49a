"""docs/troubleshooting.md quotes messages as they are printed: each is one that the code still has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from material import ROOT

# Where a value goes into a message.
GAP = "\0"
# What users see and the package does not say, or says in other words than a message.
NOT_OURS = ("ssToken is active: ...", "sstoken/selected_ratio", "ValueError: not enough values to unpack")


def template(node: ast.expr) -> str | None:
    """Return the text of a literal, with a gap for each value; None for what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[sd]|%\.\d+f", GAP, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or GAP for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = template(node.left), template(node.right)
        return None if left is None and right is None else f"{left or GAP}{right or GAP}"
    return None


def templates() -> list[str]:
    """Every text that the package and its start-up files can print."""
    files = [*(ROOT / "sstoken_plugin").rglob("*.py"), *(ROOT / "startup").glob("*.py")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return [text for node in nodes if isinstance(node, ast.expr) and (text := template(node))]


def quoted(page: Path) -> list[str]:
    """The messages that a list item of a page begins with."""
    items = re.findall(r"^- (.*?)(?=^- |^$|\Z)", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = (re.match(r"((``.+?``|`[^`]+`),?\s*)+(?=:)", item, flags=re.DOTALL) for item in items)
    found = [
        one or two for head in heads if head for one, two in re.findall(r"`` (.+?) ``|`([^`]+)`", head[0], re.DOTALL)
    ]
    return [" ".join(message.split()) for message in found]


MESSAGES = [message for message in quoted(ROOT / "docs" / "troubleshooting.md") if " " in message]


@pytest.fixture(scope="module")
def printed():
    return templates()


@pytest.mark.parametrize("message", [message for message in MESSAGES if message not in NOT_OURS])
def test_a_quoted_message_is_one_that_is_printed(message, printed):
    """A value may be left out of a quotation, or a whole part of it, as three dots; the key of a setting as KEY."""
    parts = [part.strip() for part in re.split(r"\.\.\.|KEY", message)]
    fragments = [part for part in parts if len(part) > 3]
    assert max(map(len, fragments)) >= 15, "too little to be found by"
    in_order = re.compile(".*".join(map(re.escape, fragments)), re.DOTALL)
    assert any(in_order.search(text) for text in printed)


def test_the_page_quotes_many():
    assert len(MESSAGES) > 50
