"""Prepared data as Arrow IPC shards, on a disk or in an S3-compatible store: more than one host's disk holds."""

from __future__ import annotations

from pipeline.errors import UserError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_LARGEST = 10**12


def size_of(text: str) -> int:
    """Return the bytes that 256MB, 1GB or 64KB mean. Raises UserError."""
    number, unit = text[:-2], text[-2:].upper()
    if unit not in _UNITS or not (number.isascii() and number.isdigit() and len(number) < 13):
        raise UserError(f"shards={text[:80]} is no size. Give the size of a shard as in --shards 256MB.")
    size = int(number) * _UNITS[unit]
    if not 0 < size <= _LARGEST:
        raise UserError(
            f"shards={text[:80]} is out of range. Give the size of a shard from 1KB to 1000GB, as in --shards 256MB."
        )
    return size
