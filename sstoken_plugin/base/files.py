"""Paths as users write them, and files that are replaced whole: a reader finds the old content or the new."""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give the name of a file to write beside another, whose place it takes after the block unless that fails.

    The name is one that no other process has, so that of two who write a file the last one's stands, whole.
    """
    new = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield new
        os.replace(new, file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def write_bytes(content: bytes, file: Path) -> None:
    """Write a file that is there as before, or whole."""
    with replacing(file) as new:
        new.write_bytes(content)


def unpacked(file: Path, most: int) -> bytes:
    """Return what a file of gzip holds.

    Args:
        file: the file.
        most: bytes that it may hold.

    Raises:
        OSError: it cannot be read.
        zlib.error: it is damaged, or no such file.
        ValueError: it is cut, or holds more.
    """
    stream = zlib.decompressobj(wbits=31)
    content = stream.decompress(file.read_bytes(), most)
    if not stream.eof:
        raise ValueError(f"it is cut, or longer than {most} bytes")
    return content


def expand(path: str) -> Path:
    """Return a path of the YAML with `~`, `~user` and `$VARIABLE` replaced, where there is such a user or variable."""
    # Unlike Path.expanduser, it leaves an unknown user as it is instead of raising a RuntimeError.
    return Path(os.path.expandvars(os.path.expanduser(path)))
