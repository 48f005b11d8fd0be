"""Many tf.train.Examples serialised at once as TFRecords, in compiled code that leaves the GIL: a round has millions.

The bytes are those of protobuf's deterministic serialisation (https://protobuf.dev/programming-guides/encoding/): an
Example is a map of named lists, its entries in order of their names. Around each is the frame of a TFRecord
(https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.records import InputError
from pipeline.selection import _compile

# Field numbers with their wire type, "length and bytes", in tensorflow/core/example/{example,feature}.proto.
FIRST, SECOND = 0x0A, 0x12
BYTES_LIST, FLOAT_LIST, INT64_LIST = 0x0A, 0x12, 0x1A
LARGEST = 1 << 31  # bytes from which on protobuf reads no message
HEADER, FOOTER = 12, 4  # bytes of a frame before and after an Example


class Strings:
    """Rows of `width` byte strings each, end to end: string i is data[bounds[i]:bounds[i + 1]].

    Rows can be appended while other threads look at those that are there.
    """

    def __init__(self, strings: Sequence[bytes] = (), width: int = 1):
        self.width, self._count = width, 0
        self.data, self.bounds = np.empty(0, np.uint8), np.zeros(1, np.int64)
        self.append(strings)

    def __len__(self) -> int:
        return self._count // self.width

    def append(self, strings: Sequence[bytes]) -> None:
        end = self.bounds[self._count]
        self.data = _appended(self.data, int(end), np.frombuffer(b"".join(strings), np.uint8))
        bounds = end + np.cumsum(np.fromiter(map(len, strings), np.int64, len(strings)))
        self.bounds = _appended(self.bounds, self._count + 1, bounds)
        self._count += len(strings)

    @property
    def joined(self) -> np.ndarray:
        """uint8: all strings, end to end."""
        return self.data[: self.bounds[self._count]]


def _appended(room: np.ndarray, size: int, values: np.ndarray) -> np.ndarray:
    """`values` after the first `size` of `room`; in a larger array if it has no place for them."""
    end = size + len(values)
    if end > len(room):
        room, old = np.empty(2 * end, room.dtype), room
        room[:size] = old[:size]
    room[size:end] = values
    return room


@dataclass(frozen=True, kw_only=True)
class Column:
    """One feature of n examples: of example i, values[index[starts[i]]] to values[index[starts[i + 1] - 1]].

    values: rows of strings, or of an integer or float32 array [m, ...]; an example has whole rows.
    starts: int64 [n + 1]. index: int64; None: the rows in their order.
    """

    values: Strings | np.ndarray
    starts: np.ndarray
    index: np.ndarray | None = None


def _crc_tables() -> np.ndarray:
    """uint32 [8, 256]: what a byte does to a CRC-32C when it and 0 to 7 bytes more are shifted out ("slicing by 8",
    https://doi.org/10.1109/ISCC.2005.1 by Kounavis and Berry)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    tables = [table]
    for _ in range(7):
        tables.append(table[tables[-1] & 0xFF] ^ (tables[-1] >> 8))
    return np.stack(tables)


_CRC = _crc_tables()


@_compile
def _put_crc(out, at, start, end):
    """The masked CRC-32C of out[start:end], at `at`."""
    crc = np.uint32(0xFFFFFFFF)
    i = start
    while i + 8 <= end:
        crc ^= (
            np.uint32(out[i])
            | (np.uint32(out[i + 1]) << np.uint32(8))
            | (np.uint32(out[i + 2]) << np.uint32(16))
            | (np.uint32(out[i + 3]) << np.uint32(24))
        )
        crc = (
            _CRC[7, crc & np.uint32(0xFF)]
            ^ _CRC[6, (crc >> np.uint32(8)) & np.uint32(0xFF)]
            ^ _CRC[5, (crc >> np.uint32(16)) & np.uint32(0xFF)]
            ^ _CRC[4, crc >> np.uint32(24)]
            ^ _CRC[3, out[i + 4]]
            ^ _CRC[2, out[i + 5]]
            ^ _CRC[1, out[i + 6]]
            ^ _CRC[0, out[i + 7]]
        )
        i += 8
    while i < end:
        crc = _CRC[0, (crc ^ np.uint32(out[i])) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
        i += 1
    crc ^= np.uint32(0xFFFFFFFF)
    masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
    for k in range(4):
        out[at + k] = np.uint8((masked >> np.uint32(8 * k)) & np.uint32(0xFF))


@_compile
def _put_frames(out, starts, sizes):
    """Around Examples of `sizes` bytes from `starts` on."""
    for i in range(len(starts)):
        header, end = starts[i] - HEADER, starts[i] + sizes[i]
        for k in range(8):
            out[header + k] = np.uint8((sizes[i] >> (8 * k)) & 0xFF)
        _put_crc(out, header + 8, header, header + 8)
        _put_crc(out, end, starts[i], end)


@_compile
def _varint_size(value):
    size = 1
    while value >= np.uint64(128):
        value >>= np.uint64(7)
        size += 1
    return size


@_compile
def _put_varint(out, at, value):
    while value >= np.uint64(128):
        out[at] = np.uint8(value & np.uint64(127)) | np.uint8(128)
        value >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(value)
    return at + 1


@_compile
def _framed(size):
    """The size of a field that holds `size` bytes: tag, length and the bytes."""
    return 1 + _varint_size(np.uint64(size)) + size


@_compile
def _put_frame(out, at, tag, size):
    out[at] = tag
    return _put_varint(out, at + 1, np.uint64(size))


@_compile
def _string_sizes(bounds, index, starts):
    out = np.zeros(len(starts) - 1, np.int64)
    for i in range(len(out)):
        for k in index[starts[i] : starts[i + 1]]:
            out[i] += _framed(bounds[k + 1] - bounds[k])
    return out


@_compile
def _int_sizes(values, starts):
    out = np.zeros(len(starts) - 1, np.int64)
    for i in range(len(out)):
        for value in values[starts[i] : starts[i + 1]]:
            out[i] += _varint_size(np.uint64(value))
    return out


@_compile
def _entry_sizes(sizes, name, packed):
    """Of each example's map entry, whose list of numbers (packed) or strings has `sizes` bytes."""
    out = np.empty(len(sizes), np.int64)
    for i in range(len(sizes)):
        content = _framed(sizes[i]) if packed and sizes[i] else sizes[i]
        out[i] = _framed(_framed(len(name)) + _framed(_framed(content)))
    return out


@_compile
def _example_sizes(features):
    out = np.empty(len(features), np.int64)
    for i in range(len(out)):
        out[i] = _framed(features[i])
    return out


@_compile
def _put_heads(out, at, sizes):
    for i in range(len(sizes)):
        at[i] = _put_frame(out, at[i], FIRST, sizes[i])


@_compile
def _put_entry_head(out, at, name, tag, size, packed):
    content = _framed(size) if packed and size else size
    at = _put_frame(out, at, FIRST, _framed(len(name)) + _framed(_framed(content)))
    at = _put_frame(out, at, FIRST, len(name))
    out[at : at + len(name)] = name
    at = _put_frame(out, at + len(name), SECOND, _framed(content))
    at = _put_frame(out, at, tag, content)
    return _put_frame(out, at, FIRST, size) if packed and size else at


@_compile
def _put_strings(out, at, name, sizes, data, bounds, index, starts):
    for i in range(len(sizes)):
        end = _put_entry_head(out, at[i], name, BYTES_LIST, sizes[i], False)
        for k in index[starts[i] : starts[i + 1]]:
            size = bounds[k + 1] - bounds[k]
            end = _put_frame(out, end, FIRST, size)
            out[end : end + size] = data[bounds[k] : bounds[k + 1]]
            end += size
        at[i] = end


@_compile
def _put_ints(out, at, name, sizes, values, starts):
    for i in range(len(sizes)):
        end = _put_entry_head(out, at[i], name, INT64_LIST, sizes[i], True)
        for value in values[starts[i] : starts[i + 1]]:
            end = _put_varint(out, end, np.uint64(value))
        at[i] = end


@_compile
def _put_floats(out, at, name, sizes, data, starts):
    for i in range(len(sizes)):
        end = _put_entry_head(out, at[i], name, FLOAT_LIST, sizes[i], True)
        out[end : end + sizes[i]] = data[4 * starts[i] : 4 * starts[i + 1]]
        at[i] = end + sizes[i]


def serialise(columns: dict[str, Column]) -> np.ndarray:
    """Examples, each with one feature per column, as TFRecords one after the other: uint8 [bytes].

    Raises:
      InputError: for an Example that no reader could parse.
    """
    parts: list[tuple[Any, ...]] = []  # of each feature: its name, its lists' sizes, and what writes them
    for name, column in sorted(columns.items(), key=lambda item: item[0].encode()):
        key, values, starts = np.frombuffer(name.encode(), np.uint8), column.values, column.starts
        if isinstance(values, Strings):
            index = np.arange(len(values)) if column.index is None else column.index
            index, starts = (index[:, None] * values.width + np.arange(values.width)).ravel(), starts * values.width
            sizes = _string_sizes(values.bounds, index, starts)
            parts.append((key, sizes, False, _put_strings, (values.data, values.bounds, index, starts)))
            continue
        starts = starts * int(np.prod(values.shape[1:], dtype=np.int64))
        values = np.ascontiguousarray(values if column.index is None else values[column.index]).ravel()
        if values.dtype == np.float32:
            parts.append((key, 4 * np.diff(starts), True, _put_floats, (values.view(np.uint8), starts)))
        else:
            parts.append((key, _int_sizes(values, starts), True, _put_ints, (values, starts)))
    features = sum(_entry_sizes(sizes, key, packed) for key, sizes, packed, *_ in parts)
    whole = _example_sizes(features)
    if whole.max() >= LARGEST:
        raise InputError(f"a record of {whole.max():,} bytes, and tf.train.Example holds 2 GB: lower --pack_rows")
    starts = np.cumsum(whole + HEADER + FOOTER) - whole - FOOTER
    out, at = np.empty(int(starts[-1] + whole[-1]) + FOOTER, np.uint8), starts.copy()
    _put_heads(out, at, features)
    for key, sizes, _, put, arguments in parts:
        put(out, at, key, sizes, *arguments)
    _put_frames(out, starts, whole)
    return out
