"""The data of a run's page, kept beside it and in checkpoints, so that it can be drawn again."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from sstoken_plugin.base.checked import checked
from sstoken_plugin.base.files import unpacked, write_bytes
from sstoken_plugin.base.visible_text import cut, in_short
from sstoken_plugin.report.content import MOST_COUNT, Breakdown, Moment, Report, is_record

FILE = "report.json.gz"
# Of the file and of the part of a checkpoint; a reader of one format leaves others alone.
FORMAT = 1
# When it is unpacked: a run's is a few million, and one of hundreds of samples a thousand times that of one.
_MOST_BYTES = 2**32
UNREADABLE = (OSError, EOFError, TypeError, KeyError, ValueError, zlib.error, RecursionError)


@dataclass(frozen=True)
class PageData:
    """What a page is drawn from, and what tells its run from others.

    Attributes:
        report: what the page shows.
        training: the trainer's arguments by name, and `base_model`; values of JSON's types.
    """

    report: Report
    training: Mapping[str, Any] = field(default_factory=dict)


def training_of(trainer: Any) -> dict[str, Any]:
    """Return the settings of a trainer; its secrets are left out, as where it tells them to trackers."""
    model = getattr(trainer.model, "config", None)
    return {"base_model": str(getattr(model, "_name_or_path", "")), **trainer.args.to_sanitized_dict()}


def write_page_data(data: PageData, file: Path) -> None:
    """Write the data to a file that is there as before, or whole: JSON under gzip, see docs/report.md."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Python's own choice of level takes twice as long for half a hundredth of the size.
    write_bytes(gzip.compress(as_json(data).encode(), compresslevel=6, mtime=0), file)


def read_page_data(file: Path) -> PageData:
    """Read the data of a page.

    Raises:
        ValueError: they are damaged, or none; the reason, for users.
    """
    try:
        return page_data(json.loads(unpacked(file, _MOST_BYTES)))
    except UNREADABLE as error:
        raise ValueError(f"{file} cannot be read ({in_short(error)})") from error


def as_json(data: PageData) -> str:
    """Return the data as JSON."""
    return json.dumps({"format": FORMAT, "training": data.training, "report": data.report}, default=_plain)


def _plain(value: Any) -> Any:
    return vars(value) if is_dataclass(value) else str(value)


def page_data(found: Any) -> PageData:
    """Return data from what was read.

    Raises:
        ValueError: they are none.
    """
    content = checked(found, dict[str, Any])
    if content.get("format") != FORMAT:
        raise ValueError(f"its format is {content.get('format')}, and this release reads {FORMAT}")
    return PageData(
        _report(checked(content.get("report"), dict[str, Any])), checked(content["training"], dict[str, Any])
    )


def _report(found: Mapping[str, Any]) -> Report:
    """Return a report; unknown fields are of a release to come, and those with a default may be missing."""
    kinds = get_type_hints(Report)
    values: dict[str, Any] = {}
    for part in fields(Report):
        if part.name in found:
            given = found[part.name]
            values[part.name] = (
                moments_from(given) if part.name == "moments" else _as(kinds[part.name], given, part.name)
            )
            if part.name == "breakdowns":
                _check_counts(values[part.name])
        elif part.default is MISSING and part.default_factory is MISSING:
            raise ValueError(f"it has no {part.name}")
    return Report(**values)


def _check_counts(tables: Sequence[Breakdown]) -> None:
    for table in tables:
        if not all(0 <= kept <= seen < MOST_COUNT for _, seen, kept in table.rows):
            raise ValueError(f"breakdowns: {cut(table.title)} has a row that no count gives")


def _as(kind: Any, value: Any, name: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{name}: {error.errors()[0]['msg']}") from error


def moments_from(found: Any) -> list[Moment]:
    """Return moments from what was read.

    Raises:
        ValueError: they are none, or have different samples.
    """
    moments = [_moment(entry) for entry in checked(found, list[dict[str, Any]])]
    if len({tuple(len(record["input_ids"]) for record in moment.records) for moment in moments}) > 1:
        raise ValueError("its moments have different samples")
    return moments


def _moment(entry: Mapping[str, Any]) -> Moment:
    # Others are of a release to come.
    own = [part.name for part in fields(Moment)]
    if missing := [name for name in own if name not in entry]:
        raise ValueError(f"a moment has no {missing[0]}")
    moment = Moment(**{name: entry[name] for name in own})
    checked([moment.label, moment.rule], list[str])
    checked([moment.gamma, moment.ratio], list[FiniteFloat])
    if not all(map(is_record, checked(moment.records, list[dict[str, Any]]))):
        raise ValueError("a record is none")
    return moment
