"""TFRecord files and the tf.train.Examples in them.

Files are written by TensorFlow. They are read here, for records are asked for by position and each checksum is looked
at (https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details).
"""

import mmap
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import tensorflow as tf

from pipeline.errors import InputError
from pipeline.files import storage
from pipeline.files.manifests import Shard

_HEADER, _FOOTER = 12, 4  # a TFRecord is length (8), its CRC (4), data, the data's CRC (4)


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def write_records(path: Path, records: Iterable[bytes]) -> Shard:
    """Writes a TFRecord file atomically. Returns its entry for a manifest."""

    def write(temporary: Path) -> tuple[int, int, str]:
        count = 0
        try:
            with tf.io.TFRecordWriter(str(temporary)) as writer:
                for record in records:
                    writer.write(record)
                    count += 1
        except tf.errors.OpError as error:
            raise OSError(f"{path}: {error.message}") from None
        return count, temporary.stat().st_size, storage.sha256_of(temporary)

    count, size, checksum = storage.write_atomically(path, write)
    return Shard(file=path.name, records=count, bytes=size, sha256=checksum)


def begins_with_record(path: Path) -> bool:
    """Whether a file's first length has the right checksum."""
    with path.open("rb") as file:
        header = file.read(_HEADER)
    return int.from_bytes(header[8:], "little") == _masked_crc(header[:8])


def read_records(path: Path) -> Iterator[bytes]:
    """Every record of a TFRecord file, both CRCs checked.

    Raises:
      InputError: naming the file, the record's number and what is wrong with it.
    """
    with path.open("rb") as file:
        yield from records_in(file, path.stat().st_size, path)


def records_in(file: BinaryIO, size: int, path: Path) -> Iterator[bytes]:
    """What `read_records` gives, of a path's content in an open file of that size."""
    number = position = 0
    while position < size:
        length = _length(file.read(_HEADER), size - position, f"{path}: record {number} at byte {position}")
        yield _checked(file.read(length + _FOOTER), length, path, position)
        number, position = number + 1, position + _HEADER + length + _FOOTER


def _length(header: bytes, left: int, what: str) -> int:
    """The length that a record's header announces. left: bytes from there to the file's end. what: for errors."""
    if len(header) < _HEADER:
        raise InputError(f"{what} is cut off: {len(header)} of {_HEADER} header bytes. Make the file again.")
    length, crc = struct.unpack("<QI", header)
    if _masked_crc(header[:8]) != crc:
        raise InputError(f"{what} is corrupt: the length's checksum is wrong. Make the file again.")
    if length > left - _HEADER - _FOOTER:
        raise InputError(f"{what} is cut off: {length} bytes announced, the file ends before. Make it again.")
    return int(length)


def check_lengths(path: Path, records: int) -> None:
    """Compares the lengths that a file's records announce with the file: TensorFlow's reader allocates what they say.

    Raises:
      InputError: naming the file and what does not fit.
    """
    found = position = 0
    with path.open("rb") as file:
        size = path.stat().st_size
        while position < size:
            file.seek(position)
            what = f"{path}: record {found} at byte {position}"
            position += _HEADER + _length(file.read(_HEADER), size - position, what) + _FOOTER
            found += 1
    if found != records:
        raise InputError(f"{path} holds {found} records, expected {records}. Make the file again.")


def _checked(data_and_crc: bytes, length: int, path: Path, position: int) -> bytes:
    data = data_and_crc[:-_FOOTER]
    if len(data_and_crc) != length + _FOOTER or int.from_bytes(data_and_crc[-_FOOTER:], "little") != _masked_crc(data):
        raise InputError(
            f"{path}: the record at byte {position} is corrupt: its data's checksum is wrong. Make it again."
        )
    return data


def read_records_at(path: Path, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """The records at these offsets (of their headers) with these data lengths, CRC checked."""
    if not path.stat().st_size:
        raise InputError(f"{path} is empty; it was to hold {len(offsets)} records. Make it again.")
    if not storage.is_local(path):
        ends = [offset + _HEADER + length + _FOOTER for offset, length in zip(offsets, lengths, strict=True)]
        parts = storage.read_ranges(path, offsets, ends)
        asked = zip(parts, lengths, offsets, strict=True)
        return [_checked(part[_HEADER:], length, path, offset) for part, length, offset in asked]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return [
            _checked(data[offset + _HEADER : offset + _HEADER + length + _FOOTER], length, path, offset)
            for offset, length in zip(offsets, lengths, strict=True)
        ]


def offsets_of(lengths: Sequence[int]) -> np.ndarray:
    """int64 [n]: where records of these data lengths begin in a file."""
    sizes = np.asarray(lengths, np.int64) + _HEADER + _FOOTER
    return np.cumsum(sizes) - sizes


def make_example(features: dict[str, Any]) -> bytes:
    """A serialised tf.train.Example; a feature is a list of bytes, or an integer or float array."""
    example = tf.train.Example()
    by_name = example.features.feature
    for name, value in features.items():
        feature = by_name[name]
        if isinstance(value, list):
            feature.bytes_list.value.extend(value)
        elif value.dtype.kind == "f":
            feature.float_list.value.extend(value.ravel().tolist())
        else:
            feature.int64_list.value.extend(value.ravel().tolist())
    return example.SerializeToString(deterministic=True)


def parse_example(record: bytes) -> dict[str, Any]:
    """The inverse of `make_example`: lists of bytes, int64 and float32 arrays."""
    features: dict[str, Any] = {}
    for name, feature in tf.train.Example.FromString(record).features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind == "bytes_list":
            features[name] = list(feature.bytes_list.value)
        elif kind == "int64_list":
            features[name] = np.array(feature.int64_list.value, np.int64)
        else:
            features[name] = np.array(feature.float_list.value, np.float32)
    return features
