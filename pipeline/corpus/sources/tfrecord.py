"""`tfrecord:GLOB,label=FEATURE`: tf.train.Examples; a file is a part."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from pipeline.corpus.sources.fields import make_example, open_tables
from pipeline.corpus.sources.source import Example, Rejected, Source
from pipeline.errors import InputError
from pipeline.files import tfrecords


def open_source(argument: str) -> Source:
    return open_tables("tfrecord", argument, _features, _parts, read)


def _records(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise InputError(f"{path} is compressed; TFRecords are read as they are. Unpack it: gunzip {path}")
    return tfrecords.read_records(path)


def _features(path: Path) -> list[str]:
    try:
        return sorted(tfrecords.parse_example(next(_records(path), b"")))
    except DecodeError as error:
        raise InputError(f"{path}: the first record is not a tf.train.Example: {error}") from None


def _parts(path: Path, name: str, fields: dict[str, str]) -> list[Any]:
    return [(str(path), name, fields)]


def read(part: tuple[str, str, dict[str, str]]) -> Iterator[Example | Rejected]:
    path, name, fields = part
    for number, record in enumerate(_records(Path(path))):
        where = f"{name}:{number:07d}"
        try:
            row = _values(record, fields)
        except ValueError as error:
            yield Rejected(source=where, reason=str(error))
        else:
            yield make_example(row, where, Path(path).parent)


def _values(record: bytes, fields: Mapping[str, str]) -> dict[str, Any]:
    """The fields' values. Raises ValueError where one of them should have one and has not."""
    try:
        features = tfrecords.parse_example(record)
    except DecodeError as error:
        raise ValueError(f"not a tf.train.Example: {error}") from None
    row = {}
    for ours, theirs in fields.items():
        value = features.get(theirs, [])
        if ours == "vector" and isinstance(value, np.ndarray):
            row[ours] = value
        elif len(value) == 1:
            row[ours] = value[0]
        elif ours not in ("id", "group") or len(value):
            raise ValueError(f"{theirs} has {len(value)} values, expected one")
    return row
