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
        what = f"{path}: record {number} at byte {position}"
        header = file.read(_HEADER)
        if len(header) < _HEADER:
            raise InputError(f"{what} is cut off: {len(header)} of {_HEADER} header bytes. Make the file again.")
        length, crc = struct.unpack("<QI", header)
        if _masked_crc(header[:8]) != crc:
            raise InputError(f"{what} is corrupt: the length's checksum is wrong. Make the file again.")
        if length > size - position - _HEADER - _FOOTER:
            raise InputError(f"{what} is cut off: {length} bytes announced, the file ends before. Make it again.")
        yield _checked(file.read(length + _FOOTER), path, position)
        number, position = number + 1, position + _HEADER + length + _FOOTER


def _checked(data_and_crc: bytes, path: Path, position: int) -> bytes:
    data = data_and_crc[:-_FOOTER]
    if len(data_and_crc) < _FOOTER or int.from_bytes(data_and_crc[-_FOOTER:], "little") != _masked_crc(data):
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
        return [_checked(part[_HEADER:], path, offset) for part, offset in zip(parts, offsets, strict=True)]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return [
            _checked(data[offset + _HEADER : offset + _HEADER + length + _FOOTER], path, offset)
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
