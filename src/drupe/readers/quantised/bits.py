"""Small numbers in larger words: a little-endian stream of bits, or an order of its own within each word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from drupe.readers.interface import StoredArray

ByteArray = NDArray[np.uint8]
_VALUES_AT_ONCE = 1 << 18


def unpack(words: StoredArray, bits: int, skip: int, count: int, order: Sequence[int] = ()) -> ByteArray:
    """``count`` numbers of each row, after ``skip`` bits: (rows, words) -> (rows, count).

    Number k lies in bits ``k * bits`` and up of the row's stream (over the ends of words when ``bits`` does not
    divide them); with ``order``, field i of each word is its number ``order[i]``.

    >>> unpack(np.array([[0x76543210]], np.int32), 4, 4, 3)
    array([[1, 2, 3]], dtype=uint8)
    """
    rows = np.ascontiguousarray(words)
    if not rows.size:
        return np.zeros((len(rows), count), np.uint8)
    if 8 % bits:
        return _stream(rows.view(np.dtype(f"<u{rows.itemsize}")), bits, skip, count)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields = (rows.view(np.uint8)[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)
    if order:
        fields = fields.reshape(len(rows), -1, len(order))[:, :, np.argsort(order)]
    first = skip // bits
    return np.asarray(fields.reshape(len(rows), -1)[:, first : first + count], np.uint8)


def _stream(words: NDArray[np.unsignedinteger], bits: int, skip: int, count: int) -> ByteArray:
    size = words.itemsize * 8
    places, offsets = np.divmod(skip + np.arange(count) * bits, size)
    following = np.minimum(places + 1, words.shape[1] - 1)  # the last number ends within its word
    result = np.empty((len(words), count), np.uint8)
    step = max(1, _VALUES_AT_ONCE // max(count, 1))
    for start in range(0, len(words), step):
        part = words[start : start + step].astype(np.uint64)
        both = part[:, places] | (part[:, following] << np.uint64(size))
        result[start : start + step] = (both >> offsets.astype(np.uint64)) & np.uint64((1 << bits) - 1)
    return result
