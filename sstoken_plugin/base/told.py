"""What a command of ours tells: its lines, and of an error one sentence, or the stack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

import click
from pydantic import ValidationError

from sstoken_plugin.base.streams import replace_what_streams_lack
from sstoken_plugin.base.visible_text import one_line, visible


def tell(line: str) -> None:
    """Show a line."""
    click.echo(one_line(line))


@contextmanager
def told_in_a_sentence() -> Iterator[None]:
    """Tell errors about the configuration in a sentence, on a terminal that may not have every character."""
    replace_what_streams_lack()
    try:
        yield
    except ValueError as error:
        if not is_told(error):
            raise
        words = _words(error)
        raise click.ClickException(one_line(words) if type(error) is ValueError else visible(words)) from error


def _words(error: ValueError) -> str:
    """Return what an error says; of one of validation not the values, which may be whole configurations."""
    if not isinstance(error, ValidationError):
        return str(error)
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    keys = (".".join(map(str, fault["loc"])) for fault in faults)
    words = (fault["msg"].removeprefix("Value error, ") for fault in faults)
    return "\n".join(f"{key}: {said}" if key else said for key, said in zip(keys, words, strict=True))


def is_told(error: ValueError) -> bool:
    """Tell whether an error was raised to be read by users: by us, or as the result of validation."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    ours = frames[-1].f_globals.get("__name__", "").partition(".")[0] in ("sstoken_plugin", "sstoken_startup")
    return ours or (type(error) is not ValueError and not isinstance(error, UnicodeError))
