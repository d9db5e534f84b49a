"""Losses of an unchanging history on disk, for later epochs and later runs: `sstoken.history_cache`.

One SQLite file. Losses come in blocks of many samples, compressed with zlib, whose checksum shows a damaged
block. Blocks are only ever added, so that several processes can read and write at once, and a process that is
killed leaves whole blocks behind. A sample takes about 9 bytes and 2.25 bytes a token, before compression.
"""

from __future__ import annotations

import logging
import sqlite3
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

LOG = logging.getLogger(__name__)

FILE = "losses.sqlite"
KEY_BYTES = 8
# A loss n is stored as 18 bits of log(1 + n / SMALL): fine where losses are small and so is what training changes
# about them. Half a step is 1.3e-6 at a loss of 0, 1.5e-5 at 1, 1.4e-4 at 10 and 1.4e-3 at LARGEST.
SMALL, LARGEST = 0.1, 100.0
_STEPS = (2**18 - 1) / np.log1p(LARGEST / SMALL)
# Tokens that are collected before they are written: a page of the file is not left half empty too often.
BLOCK_TOKENS = 8192
# For another process to finish its writing.
_WAIT_SECONDS = 60
_TABLES = """
PRAGMA page_size = 512;
CREATE TABLE IF NOT EXISTS blocks (id INTEGER PRIMARY KEY, history BLOB, losses BLOB);
"""

Losses = NDArray[np.float32]
Codes = NDArray[np.uint32]


def encode(losses: Losses) -> Codes | None:
    """Turn losses in nats into 18-bit codes, or None where one is not finite or above `LARGEST`."""
    if not (np.isfinite(losses).all() and (losses <= LARGEST).all()):
        return None
    return np.rint(np.log1p(np.maximum(losses, 0).astype(np.float64) / SMALL) * _STEPS).astype("<u4")


def decode(codes: Codes) -> Losses:
    """Turn codes into losses, float32."""
    return (np.expm1(codes / _STEPS) * SMALL).astype(np.float32)


def resolution(losses: Tensor) -> Tensor:
    """Return the difference between losses, any shape, that storing may make or hide."""
    return (losses + SMALL) / float(_STEPS)


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
        self._places: dict[bytes, tuple[int, int]]
        self._block = lru_cache(maxsize=64)(self._read_block)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._open()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                aside = self.file.with_suffix(".damaged")
                LOG.warning("ssToken: %s is damaged (%s): it is now %s, and is begun anew.", self.file, error, aside)
                self.file.rename(aside)
                self._open()
        except (OSError, sqlite3.Error) as error:
            raise ValueError(
                f"sstoken.history_cache: {folder} cannot be used ({error}); name a folder that can be written to."
            ) from error

    def _open(self) -> None:
        self._newest, self._places = 0, {}
        self._database = sqlite3.connect(self.file, timeout=_WAIT_SECONDS, isolation_level=None)
        self._database.executescript(_TABLES)
        self._read_new_blocks()

    def __len__(self) -> int:
        """Return the number of samples whose losses are there."""
        return len(self._places.keys() | self._pending.keys())

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return those of `keys` that are not there, without doubles."""
        self._try_to_read()
        return [key for key in dict.fromkeys(keys) if key not in self._places and key not in self._pending]

    def get(self, keys: list[bytes]) -> list[Losses | None]:
        """Return the losses of samples, each float32 [n]; None where they are not there."""
        if any(key not in self._places and key not in self._pending for key in keys):
            # Another process may have written them since.
            self._try_to_read()
        return [self._get(key) for key in keys]

    def put(self, losses: Mapping[bytes, Losses]) -> dict[bytes, Losses]:
        """Keep the losses of samples.

        Returns:
            The losses as `get` will give them, so that a run is the same with them as without.
        """
        rounded = {}
        for key, values in losses.items():
            codes = encode(values)
            rounded[key] = values if codes is None else decode(codes)
            if codes is not None:
                self._pending[key] = codes
        if sum(map(len, self._pending.values())) >= BLOCK_TOKENS:
            self.flush()
        return rounded

    def flush(self) -> None:
        """Write what is collected. A full disk ends the writing, with a warning, and nothing else."""
        if not self._pending or not self._writable:
            return
        try:
            self._database.execute(
                "INSERT INTO blocks (history, losses) VALUES (?, ?)", (self._history, _pack(self._pending))
            )
        except sqlite3.Error as error:
            self._writable = False
            LOG.warning("ssToken: %s takes no more losses (%s); training goes on without.", self.file, error)
            return
        self._try_to_read()
        self._pending.clear()

    def close(self) -> None:
        """Write what is collected and close the file."""
        self.flush()
        self._database.close()

    def _get(self, key: bytes) -> Losses | None:
        if key in self._pending:
            return decode(self._pending[key])
        if key not in self._places:
            return None
        block, place = self._places[key]
        try:
            return decode(self._block(block)[place])
        except (sqlite3.Error, zlib.error, ValueError) as error:
            self._forget(block, error)
            return None

    def _read_block(self, block: int) -> list[Codes]:
        row = self._database.execute("SELECT losses FROM blocks WHERE id = ?", (block,)).fetchone()
        if row is None:
            raise ValueError("deleted by another process")
        return _unpack(row[0])[1]

    def _try_to_read(self) -> None:
        if not self._readable:
            return
        try:
            self._read_new_blocks()
        except sqlite3.Error as error:
            self._readable = False
            LOG.warning("ssToken: %s cannot be read any more (%s); losses are computed again.", self.file, error)

    def _read_new_blocks(self) -> None:
        rows = self._database.execute(
            "SELECT id, losses FROM blocks WHERE history = ? AND id > ? ORDER BY id", (self._history, self._newest)
        )
        for block, packed in rows:
            self._newest = block
            try:
                keys, _ = _unpack(packed)
            except (zlib.error, ValueError) as error:
                self._forget(block, error)
            else:
                self._places |= {key: (block, place) for place, key in enumerate(keys)}

    def _forget(self, block: int, error: Exception) -> None:
        """A damaged block is not there: its samples are computed again."""
        LOG.warning("ssToken: losses in %s are damaged (block %d: %s) and are computed again.", self.file, block, error)
        self._places = {key: place for key, place in self._places.items() if place[0] != block}


def _pack(losses: Mapping[bytes, Codes]) -> bytes:
    """Lay out a block: number of samples, keys, lengths, and all codes: their 8 high bits, the 8 next, the 2 last."""
    codes = np.concatenate(list(losses.values()))
    lengths = np.array([len(values) for values in losses.values()], dtype="<u4")
    last = np.packbits(codes[:, None] >> np.array([1, 0]) & 1)
    planes = (codes >> 10, codes >> 2 & 0xFF, last)
    count = len(losses).to_bytes(4, "little")
    parts = (count, *losses, lengths.tobytes(), *(plane.astype(np.uint8).tobytes() for plane in planes))
    return zlib.compress(b"".join(parts), level=6)


def _unpack(packed: bytes) -> tuple[list[bytes], list[Codes]]:
    raw = zlib.decompress(packed)
    count = int.from_bytes(raw[:4], "little")
    after_keys = 4 + count * KEY_BYTES
    keys = [raw[start : start + KEY_BYTES] for start in range(4, after_keys, KEY_BYTES)]
    lengths = np.frombuffer(raw, dtype="<u4", count=count, offset=after_keys)
    planes = np.frombuffer(raw, dtype=np.uint8, offset=after_keys + lengths.nbytes)
    total = int(lengths.sum())
    high, middle = planes[: 2 * total].astype("<u4").reshape(2, total)
    last = np.unpackbits(planes[2 * total :], count=2 * total).reshape(total, 2).astype("<u4")
    codes = high << 10 | middle << 2 | last[:, 0] << 1 | last[:, 1]
    return keys, np.split(codes, np.cumsum(lengths)[:-1])
