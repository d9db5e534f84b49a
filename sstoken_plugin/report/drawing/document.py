"""One HTML document without a script that asks the network for nothing.

Every text that comes from a YAML, a run or a library is escaped, and what cannot be seen in it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path

from sstoken_plugin.base.visible_text import cut, one_line
from sstoken_plugin.report.render import csp_hash, page_file

# Of a page, in which its generator stands.
_HEAD_BYTES = 500
GENERATOR = "sstoken-plugin"


def document(title: str, head: str, body: str, style: str = "", generator: str = GENERATOR) -> str:
    """Return the document.

    Args:
        title: untrusted text.
        head: HTML below the title.
        body: HTML of the sections.
        style: CSS on top of that of all pages.
        generator: what wrote it, by which a program knows its own pages again.
    """
    style = page_file("page.css") + _style() + style
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="{escape(generator)}">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"style-src 'sha256-{csp_hash(style)}'; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header class="top"><h1>{escaped(title)}</h1>{head}</header>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def is_written_by(file: Path, generator: str = GENERATOR) -> bool:
    """Tell whether a file is a page of ours; see `document`."""
    try:
        with file.open("rb") as opened:
            return f'content="{escape(generator)}"'.encode() in opened.read(_HEAD_BYTES)
    except OSError:
        return False


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of untrusted texts; a wide one scrolls within itself, by the keyboard too."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def escaped(words: str) -> str:
    """Return untrusted text as HTML, on one line and of bounded length."""
    return escape(one_line(cut(words)))


@cache
def _style() -> str:
    return (files("sstoken_plugin.report.drawing") / "drawing.css").read_text(encoding="utf-8")
