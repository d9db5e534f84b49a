"""The SQLite file of a loss cache: opened, told damaged from busy, and replaced where it is damaged."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from sstoken_plugin.base.logs import logger
from sstoken_plugin.history.blocks import FORMAT, MOST_BYTES

LOG = logger(__name__)

# What reading a damaged file may raise: SQLite's own words may be no UTF-8 either.
FAULTS = (sqlite3.Error, UnicodeError)
# The file's content; every other code of SQLite is about its surroundings: a lock, rights, room, the disk.
_OF_CONTENT = {
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_SCHEMA,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_TOOBIG,
}
# Numbers that are never given twice, so that what one process knows of a block holds for good.
_TABLE = "CREATE TABLE blocks (id INTEGER PRIMARY KEY AUTOINCREMENT, history BLOB, losses BLOB)"


class NoCacheError(sqlite3.DatabaseError):
    """What has the name of a cache is none of this format."""


def is_busy(error: Exception) -> bool:
    """Tell whether another process holds the file."""
    return isinstance(error, Timeout) or _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_damage(error: Exception) -> bool:
    """Tell damage from what the surroundings of a file do."""
    return _code(error) in _OF_CONTENT


def open_database(
    file: Path, wait: float, read: Callable[[sqlite3.Connection], None], fault: Exception | None = None
) -> sqlite3.Connection:
    """Open a cache, and make it where there is none. A damaged one is put aside; what it still gives is taken over.

    Args:
        file: of the cache.
        wait: seconds to wait for other processes.
        read: reads all that the caller needs, to see whether it can be.
        fault: damage that showed when it was written to; None to look for some.

    Raises:
        OSError, sqlite3.Error: the surroundings do not allow it.
    """
    found = fault or _opened_or_damage(file, wait, read)
    if isinstance(found, sqlite3.Connection):
        return found
    before = _identity(file)
    # One process at a time: else the good file of the first is put aside by the second.
    with FileLock(file.with_suffix(".lock"), timeout=wait):
        if _unfinished(file).exists() and not os.path.lexists(file):
            # Whoever repaired it was stopped at its last step.
            _unfinished(file).rename(file)
        if fault is None or _identity(file) != before:
            found = _opened_or_damage(file, wait, read)
            if isinstance(found, sqlite3.Connection):
                return found
        _replace(file, wait, found)
        return _opened(file, wait, read)


def _opened_or_damage(
    file: Path, wait: float, read: Callable[[sqlite3.Connection], None]
) -> sqlite3.Connection | Exception:
    try:
        return _opened(file, wait, read)
    except FAULTS as error:
        if not is_damage(error):
            raise
        return error


def _replace(file: Path, wait: float, fault: Exception) -> None:
    """Put a damaged cache aside, and a new one in its place, with the blocks that can still be read."""
    new = _unfinished(file)
    new.unlink(missing_ok=True)
    try:
        rescued = _rescue(file, new, wait)
    except sqlite3.Error:
        new.unlink(missing_ok=True)
        raise
    aside = _free_name(file)
    file.rename(aside)
    for leftover in (f"{file}-journal", f"{file}-wal", f"{file}-shm"):
        # Of the old file; SQLite would apply it to the new one.
        Path(leftover).unlink(missing_ok=True)
    new.rename(file)
    LOG.warning(
        "ssToken: %s is damaged (%s): it is now %s, and a new one starts with the %d blocks that could be read.",
        file, fault, aside, rescued,
    )  # fmt: skip


def _opened(file: Path, wait: float, read: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    if os.path.lexists(file) and not file.is_file():
        raise NoCacheError("it is no file")
    if not file.exists() and _unfinished(file).exists():
        raise NoCacheError("a process that repaired it was stopped")
    database = _connected(file, wait)
    try:
        if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
            _make(database)
        (found,) = database.execute("PRAGMA user_version").fetchone()
        if found != FORMAT:
            raise NoCacheError(f"format {found} in place of {FORMAT}")
        with file.open("rb") as opened:
            # Where a newer SQLite would have written something else this one would only read.
            if not set(opened.read(20)[18:]) <= {1, 2}:
                raise NoCacheError("its header is not one of this format")
        read(database)
    except BaseException:
        database.close()
        raise
    return database


def _connected(file: Path, wait: float) -> sqlite3.Connection:
    database = sqlite3.connect(file, timeout=wait, isolation_level=None)
    # Text is no part of the format, and where damage makes some it may be no UTF-8.
    database.text_factory = bytes
    return database


def _make(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA page_size = 512")
    database.execute("BEGIN IMMEDIATE")
    # Another process may have been faster.
    if not database.execute("SELECT 1 FROM sqlite_master").fetchone():
        database.execute(_TABLE)
        database.execute(f"PRAGMA user_version = {FORMAT}")
    database.execute("COMMIT")


def _rescue(damaged: Path, file: Path, wait: float) -> int:
    """Make a new cache of the blocks that a damaged one still gives, from both of its ends; return their number.

    Raises:
        sqlite3.Error: there is no room for it.
    """
    seen: set[int] = set()
    with closing(_connected(file, wait)) as new:
        _make(new)
        new.execute("BEGIN IMMEDIATE")
        for order in ("ASC", "DESC") if damaged.is_file() else ():
            for number, history, losses in _readable(damaged, order):
                if number in seen:
                    break
                seen.add(number)
                new.execute("INSERT INTO blocks (history, losses) VALUES (?, ?)", (history, losses))
        new.execute("COMMIT")
    return len(seen)


def _readable(damaged: Path, order: str) -> Iterator[tuple[int, object, object]]:
    """Yield the rows of a damaged cache up to the first that cannot be read."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(damaged))}?mode=rw", uri=True)) as old:
            old.text_factory = bytes
            old.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_BYTES)
            # By place, because a name may be what is damaged.
            for row in old.execute(f"SELECT * FROM blocks ORDER BY 1 {order}"):
                if len(row) == 3 and isinstance(row[0], int):
                    yield row
    except FAULTS:
        return


def _unfinished(file: Path) -> Path:
    """Return where the new file is made that takes the place of a damaged one."""
    return file.with_suffix(".new")


def _free_name(file: Path) -> Path:
    names = (file.with_suffix(f".damaged{number or ''}") for number in range(10_000))
    return next(name for name in names if not os.path.lexists(name))


def _identity(file: Path) -> int:
    return file.stat().st_ino if file.exists() else 0


def _code(error: Exception) -> int:
    if isinstance(error, OSError):
        return -1
    # Python raises some without a code, where a value cannot be read.
    code = getattr(error, "sqlite_errorcode", None)
    return sqlite3.SQLITE_CORRUPT if code is None else code & 0xFF
