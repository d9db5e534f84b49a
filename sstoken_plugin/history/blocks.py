"""How losses are laid out on disk: 18 bits a loss, many samples a block, compressed with a checksum."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# Of this layout and of the hashes that name samples; a change of either needs another number.
FORMAT = 2
KEY_BYTES = 8
# A loss n is stored as 18 bits of log(1 + n / SMALL): fine where losses are small and so is what training changes
# about them. Half a step is 1.3e-6 at a loss of 0, 1.5e-5 at 1, 1.4e-4 at 10 and 1.4e-3 at LARGEST.
SMALL, LARGEST = 0.1, 100.0
_STEPS = (2**18 - 1) / np.log1p(LARGEST / SMALL)
# Response tokens of a sample that is kept, and bytes that a block may unpack to: more than one such sample takes.
MOST_TOKENS = 2**22
MOST_BYTES = 2**24

Losses = NDArray[np.float32]
Codes = NDArray[np.uint32]


def encode(losses: Losses) -> Codes | None:
    """Turn losses in nats into 18-bit codes, or None where one is not finite or above `LARGEST`."""
    if not (np.isfinite(losses).all() and (losses <= LARGEST).all()):
        return None
    codes: Codes = np.rint(np.log1p(np.maximum(losses, 0).astype(np.float64) / SMALL) * _STEPS).astype("<u4")
    return codes


def decode(codes: Codes) -> Losses:
    """Turn codes into losses, float32."""
    losses: Losses = (np.expm1(codes / _STEPS) * SMALL).astype(np.float32)
    return losses


def resolution(losses: Tensor) -> Tensor:
    """Return the difference between losses, any shape, that storing may make or hide."""
    return (losses + SMALL) / float(_STEPS)


def pack(losses: Mapping[bytes, Codes]) -> bytes:
    """Lay out a block: number of samples, keys, lengths, and all codes: their 8 high bits, the 8 next, the 2 last."""
    codes = np.concatenate(list(losses.values()))
    lengths = np.array([len(values) for values in losses.values()], dtype="<u4")
    last = np.packbits(codes[:, None] >> np.array([1, 0]) & 1)
    planes = (codes >> 10, codes >> 2 & 0xFF, last)
    count = len(losses).to_bytes(4, "little")
    parts = (count, *losses, lengths.tobytes(), *(plane.astype(np.uint8).tobytes() for plane in planes))
    return zlib.compress(b"".join(parts), level=6)


def unpack(packed: object) -> dict[bytes, Codes]:
    """Read a block.

    Raises:
        ValueError: it is none that `pack` made.
    """
    keys, lengths, planes = _checked(packed)
    total = int(lengths.sum(dtype=np.uint64))
    high, middle = planes[: 2 * total].astype("<u4").reshape(2, total)
    last = np.unpackbits(planes[2 * total :], count=2 * total).reshape(total, 2).astype("<u4")
    codes = high << 10 | middle << 2 | last[:, 0] << 1 | last[:, 1]
    return dict(zip(keys, np.split(codes, np.cumsum(lengths)[:-1]), strict=True)) if keys else {}


def lengths_in(packed: object) -> dict[bytes, int]:
    """Return how many losses each sample of a block has.

    Raises:
        ValueError: it is none that `pack` made.
    """
    keys, lengths, _ = _checked(packed)
    return dict(zip(keys, lengths.tolist(), strict=True))


def _checked(packed: object) -> tuple[list[bytes], NDArray[np.uint32], NDArray[np.uint8]]:
    """Return keys, lengths and the codes' planes of a block."""
    if not isinstance(packed, bytes):
        raise ValueError("not a block")
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(packed, MOST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not stream.eof or stream.unused_data:
        raise ValueError("its length is not that of any block")
    count = int.from_bytes(raw[:4], "little")
    after_keys = 4 + count * KEY_BYTES
    if len(raw) < after_keys + 4 * count:
        raise ValueError("samples are missing")
    keys = [raw[start : start + KEY_BYTES] for start in range(4, after_keys, KEY_BYTES)]
    lengths = np.frombuffer(raw, dtype="<u4", count=count, offset=after_keys)
    planes = np.frombuffer(raw, dtype=np.uint8, offset=after_keys + lengths.nbytes)
    total = int(lengths.sum(dtype=np.uint64))
    if len(planes) != 2 * total + (2 * total + 7) // 8:
        raise ValueError("losses are missing")
    return keys, lengths, planes
