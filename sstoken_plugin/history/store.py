"""Losses of an unchanging history on disk, for later epochs and later runs: `sstoken.history_cache`.

One SQLite file. Losses come in blocks of many samples, whose checksum shows a damaged one. Blocks are only ever added,
so that several processes can read and write at once, and a process that is killed leaves whole blocks behind. A sample
takes about 12 bytes and 2.25 bytes a token, before compression.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from sstoken_plugin.base.logs import logger
from sstoken_plugin.history.blocks import (
    FORMAT,
    KEY_BYTES,
    MOST_BYTES,
    MOST_TOKENS,
    Codes,
    Losses,
    decode,
    encode,
    lengths_in,
    pack,
    unpack,
)
from sstoken_plugin.history.database import FAULTS, is_busy, is_damage, open_database

LOG = logger(__name__)

# With the format, so that releases that know another one leave each other's files alone.
FILE = f"losses-{FORMAT}.sqlite"
OLD_FILE = "losses.sqlite"
# Tokens that are collected before they are written: a page of the file is not left half empty too often.
BLOCK_TOKENS = 8192
# Tokens that are collected at most while another process holds the file.
MOST_WAITING = 2**24
# For another process to finish its writing.
_WAIT_SECONDS = 60.0


class LossStore:
    """The stored losses of one history.

    Args:
        folder: made if it is missing.
        history: fingerprint of the history, see `fingerprint`.

    Raises:
        ValueError: the folder cannot be used; the sentence names `sstoken.history_cache`.
    """

    def __init__(self, folder: Path, history: bytes):
        self.file = folder / FILE
        self._history = history
        self._writable = self._readable = True
        self._pending: dict[bytes, Codes] = {}
        # Tokens in there.
        self._waiting = 0
        # Block, and number of tokens, of each sample.
        self._places: dict[bytes, tuple[int, int]] = {}
        self._newest = 0
        self._block = lru_cache(maxsize=64)(self._read_block)
        self._database: sqlite3.Connection | None = None
        self._inode = 0
        self._no_wait_before = 0.0
        self._told: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not self.file.exists() and (folder / OLD_FILE).exists():
                LOG.warning(
                    "ssToken: %s is of version 0.1, which mixes up samples with other labels: it is left alone, and "
                    "%s is begun.", folder / OLD_FILE, self.file,
                )  # fmt: skip
            self._open()
        except (OSError, *FAULTS) as error:
            if self.file.is_file() and not is_busy(error):
                # A full disk or the like, at the worst moment: damage must be repaired.
                LOG.warning("ssToken: %s cannot be repaired (%s): this run goes on without it.", self.file, error)
                self._writable = self._readable = False
                self._places = {}
                return
            fix = "empty it, or name a folder that can be written to"
            if is_busy(error):
                fix = f"another process has held it for {_WAIT_SECONDS:.0f} s: wait for it, or name another folder"
            raise ValueError(f"sstoken.history_cache: {folder} cannot be used ({error}); {fix}.") from error

    @property
    def is_waited_for(self) -> bool:
        """Whether another process held the file at the last attempt, so that a later one may find more."""
        return time.monotonic() < self._no_wait_before

    def __len__(self) -> int:
        """Return the number of samples whose losses are there."""
        return len(self._places.keys() | self._pending.keys())

    def missing(self, keys: Iterable[bytes], lengths: Iterable[int] | None = None) -> list[bytes]:
        """Return those of `keys` that are not there, without doubles.

        Args:
            keys: of samples.
            lengths: number of losses that each must have; None for any.
        """
        self._try_to_read()
        wanted = dict.fromkeys(keys) if lengths is None else dict(zip(keys, lengths, strict=True))
        return [key for key, length in wanted.items() if not self._is_known(key, length)]

    def get(self, keys: Sequence[bytes], lengths: Sequence[int] | None = None) -> list[Losses | None]:
        """Return the losses of samples, each float32 [n]; None where they are not there.

        Args:
            keys: of samples.
            lengths: see `missing`.
        """
        wanted = list(zip(keys, [None] * len(keys) if lengths is None else lengths, strict=True))
        if not all(self._is_known(key, length) for key, length in wanted):
            # Another process may have written them since.
            self._try_to_read()
        return [self._get(key) if self._is_known(key, length) else None for key, length in wanted]

    def put(self, losses: Mapping[bytes, Losses]) -> dict[bytes, Losses]:
        """Keep the losses of samples.

        Returns:
            The losses as `get` will give them, so that a run is the same with them as without.
        """
        coded = _coded(losses)
        for key, (_, codes) in coded.items():
            if codes is not None and len(codes) <= MOST_TOKENS and self._waiting < MOST_WAITING:
                self._waiting += len(codes) - len(self._pending.get(key, ()))
                self._pending[key] = codes
        if self._waiting >= BLOCK_TOKENS:
            self.flush()
        return _decoded(coded)

    def rounded(self, losses: Mapping[bytes, Losses]) -> dict[bytes, Losses]:
        """Return losses as `get` would give them if they were kept."""
        return _decoded(_coded(losses))

    def flush(self) -> None:
        """Write what is collected, or keep it until another process lets go of the file.

        A full disk ends the writing, with a warning, and nothing else.
        """
        if not self._pending or not self._writable:
            return
        try:
            if self.file.stat().st_ino != self._inode:
                # Another process found the file damaged and began it anew.
                self._open()
            try:
                self._write()
            except FAULTS as error:
                if not is_damage(error):
                    raise
                self._open(error)
                self._write()
        except (OSError, *FAULTS) as error:
            if not is_busy(error):
                self._writable = False
                LOG.warning("ssToken: %s takes no more losses (%s); training goes on without.", self.file, error)

    def close(self) -> None:
        """Write what is collected and close the file."""
        self.flush()
        if self._database is not None:
            self._database.close()

    def _open(self, fault: Exception | None = None) -> None:
        """Open the file, anew where another process has replaced it or writing to it has shown damage."""
        old = self._database
        self._database = open_database(self.file, _WAIT_SECONDS, self._read_all_blocks, fault)
        self._inode = self.file.stat().st_ino
        if old is not None:
            old.close()

    def _write(self) -> None:
        while self._pending:
            block = self._next_block()
            with self._patience() as database:
                database.execute("INSERT INTO blocks (history, losses) VALUES (?, ?)", (self._history, pack(block)))
            self._try_to_read()
            for key in block:
                self._waiting -= len(self._pending.pop(key))

    @contextmanager
    def _patience(self) -> Iterator[sqlite3.Connection]:
        """Give the database, and wait for a file that another process holds, but not again and again within one step.

        Raises:
            sqlite3.OperationalError: it is still held.
        """
        assert self._database is not None
        wait = 0 if self.is_waited_for else _WAIT_SECONDS
        self._database.execute(f"PRAGMA busy_timeout = {wait * 1000:.0f}")
        try:
            yield self._database
        except FAULTS as error:
            if is_busy(error) and wait:
                self._no_wait_before = time.monotonic() + wait
                self._tell("ssToken: %s is held by another process (%s); training goes on without until it is free.",
                           error)  # fmt: skip
            raise

    def _next_block(self) -> dict[bytes, Codes]:
        """Return the samples that are collected, as many as a block may hold."""
        block: dict[bytes, Codes] = {}
        size = 4
        for key, codes in self._pending.items():
            # Key, length, and at most 3 bytes a loss.
            size += KEY_BYTES + 4 + 3 * len(codes)
            if block and size > MOST_BYTES:
                break
            block[key] = codes
        return block

    def _is_known(self, key: bytes, length: int | None) -> bool:
        if key in self._pending:
            found = len(self._pending[key])
        elif key in self._places:
            found = self._places[key][1]
        else:
            return False
        return length in (None, found)

    def _get(self, key: bytes) -> Losses | None:
        if key in self._pending:
            return decode(self._pending[key])
        block, length = self._places[key]
        try:
            codes = self._block(block).get(key)
            if codes is None or len(codes) != length:
                raise ValueError("other samples than before")
        except (ValueError, *FAULTS) as error:
            if isinstance(error, ValueError) or is_damage(error):
                self._forget(block, error)
            return None
        return decode(codes)

    def _read_block(self, block: int) -> dict[bytes, Codes]:
        with self._patience() as database:
            row = database.execute(
                "SELECT losses FROM blocks WHERE id = ? AND length(losses) <= ?", (block, MOST_BYTES)
            ).fetchone()
        return unpack(None if row is None else row[0])

    def _try_to_read(self) -> None:
        if not self._readable:
            return
        try:
            with self._patience() as database:
                self._read_new_blocks(database)
        except FAULTS as error:
            if is_damage(error):
                self._readable = False
                LOG.warning("ssToken: %s cannot be read any more (%s); losses are computed again.", self.file, error)
            elif not is_busy(error):
                self._tell("ssToken: %s cannot be read now (%s); losses are computed again.", error)

    def _read_all_blocks(self, database: sqlite3.Connection) -> None:
        self._newest, self._places = 0, {}
        self._block.cache_clear()
        self._read_new_blocks(database)

    def _read_new_blocks(self, database: sqlite3.Connection) -> None:
        rows = database.execute(
            "SELECT id, CASE WHEN length(losses) <= ? THEN losses END FROM blocks WHERE history = ? AND id > ? "
            "ORDER BY id", (MOST_BYTES, self._history, self._newest),
        )  # fmt: skip
        for block, packed in rows:
            self._newest = block
            try:
                found = lengths_in(packed)
            except ValueError as error:
                self._forget(block, error)
            else:
                self._places |= {key: (block, length) for key, length in found.items()}

    def _forget(self, block: int, error: Exception) -> None:
        """A damaged block is not there: its samples are computed again."""
        LOG.warning("ssToken: losses in %s are damaged (block %d: %s) and are computed again.", self.file, block, error)
        self._places = {key: place for key, place in self._places.items() if place[0] != block}

    def _tell(self, sentence: str, error: Exception) -> None:
        """Warn, once for each sentence."""
        if sentence not in self._told:
            self._told.add(sentence)
            LOG.warning(sentence, self.file, error)


def _coded(losses: Mapping[bytes, Losses]) -> dict[bytes, tuple[Losses, Codes | None]]:
    """Return losses with the codes that are kept of them; None where they have none."""
    return {key: (values, encode(values)) for key, values in losses.items()}


def _decoded(coded: Mapping[bytes, tuple[Losses, Codes | None]]) -> dict[bytes, Losses]:
    return {key: values if codes is None else decode(codes) for key, (values, codes) in coded.items()}
