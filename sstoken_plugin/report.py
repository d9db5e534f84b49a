"""The report page: one self-contained HTML file that shows samples, curves and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import sstoken_plugin
from sstoken_plugin.inspection import Record

# Longer samples are cut, visibly.
MAX_TOKENS = 600

_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.sample { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: 6px;
          padding: .6rem; margin: .6rem 0; font: 14px/1.7 ui-monospace, monospace }
.prompt { opacity: .55 }
.kept { background: hsl(150 70% 45% / calc(.15 + .6 * var(--score))); border-radius: 3px }
.dropped { text-decoration: line-through; opacity: .7 }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { font-size: .85rem } svg { width: 100%; height: 7rem; border: 1px solid var(--line) }
polyline { fill: none; stroke: #2a8; stroke-width: 1.5; vector-effect: non-scaling-stroke }
.warning { border-left: 4px solid #d80; padding-left: .6rem }
td { padding: .1rem .8rem .1rem 0; vertical-align: top }
"""


def render(
    records: Sequence[Record],
    sentence: str,
    settings: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]] = (),
    warnings: Sequence[str] = (),
) -> str:
    """Return the page.

    Args:
        records: scored samples, see `inspection.inspect_samples`.
        sentence: what was selected and how, in words.
        settings: the `sstoken:` block.
        log: training log lines; their `sstoken/` numbers become curves.
        warnings: warnings raised about the selection.
    """
    rows = {**settings, "sstoken-plugin": sstoken_plugin.__version__}
    body = [
        "<h1>What ssToken selected</h1>",
        f"<p>{escape(sentence)}</p>",
        *(f'<p class="warning">{escape(warning)}</p>' for warning in warnings),
        *_curves(log),
        "<h2>Samples</h2>",
        '<p><span class="kept" style="--score:1">kept</span> tokens are shaded by score, '
        '<span class="dropped">dropped</span> ones are struck out; <span class="prompt">the prompt</span> is pale. '
        "A token's numbers show on hover.</p>",
        *map(_sample, records),
        "<h2>Settings</h2>",
        "<table>",
        *(f"<tr><td>{escape(key)}</td><td>{escape(str(value))}</td></tr>" for key, value in rows.items()),
        "</table>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>ssToken report</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _sample(record: Record) -> str:
    total = len(record["tokens"])
    spans = [_token(record, place) for place in range(min(total, MAX_TOKENS))]
    if total > MAX_TOKENS:
        spans.append(f"<p><em>Cut here: {total - MAX_TOKENS} more tokens.</em></p>")
    kept, response = sum(record["selected"]), sum(record["response"])
    return (
        f"<h3>Sample {record['sample']}: {kept} of {response} response tokens kept</h3>"
        f'<div class="sample">{"".join(spans)}</div>'
    )


def _token(record: Record, place: int) -> str:
    # Data nobody vetted: markup is escaped, direction is isolated, control characters become pictures.
    text = "".join(_visible(character) for character in record["tokens"][place])
    inner = f"<bdi>{escape(text)}</bdi>"
    if not record["response"][place]:
        return f'<span class="prompt">{inner}</span>'
    names = ("current_nll", "history_nll", "rel", "attention", "score")
    numbers = "; ".join(f"{name} {record[name][place]:.3f}" for name in names if record[name][place] is not None)
    score = min(max(record["score"][place] or 0.0, 0.0), 1.0)
    kind = "kept" if record["selected"][place] else "dropped"
    return f'<span class="{kind}" style="--score:{score:.2f}" title="{numbers}">{inner}</span>'


def _visible(character: str) -> str:
    if character in "\n\t" or (character.isprintable() and character != "\x7f"):
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else f"[U+{ord(character):04X}]"


def _curves(log: Sequence[Mapping[str, Any]]) -> list[str]:
    names = sorted({name for line in log for name in line if name.startswith("sstoken/")} | {"loss"})
    figures = []
    for name in names:
        points = [(line["step"], line[name]) for line in log if name in line]
        if len(points) < 2:
            continue
        low, high = min(y for _, y in points), max(y for _, y in points)
        first, last = points[0][0], points[-1][0]
        path = " ".join(
            f"{100 * (x - first) / (last - first or 1):.2f},{38 - 36 * (y - low) / (high - low or 1):.2f}"
            for x, y in points
        )
        figures.append(
            f"<figure><figcaption>{escape(name)}: {points[-1][1]:.4g} (from {low:.4g} to {high:.4g})</figcaption>"
            f'<svg viewBox="0 0 100 40" preserveAspectRatio="none"><polyline points="{path}"/></svg></figure>'
        )
    return ["<h2>Training</h2>", f'<div class="curves">{"".join(figures)}</div>'] if figures else []
