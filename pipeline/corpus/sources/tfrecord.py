"""`tfrecord:GLOB,label=FEATURE`: tf.train.Examples; a file is a part."""

import contextlib
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from pipeline.corpus.sources.encoding import encode_png
from pipeline.corpus.sources.fields import (
    PAYLOADS,
    choose_fields,
    kind_of,
    make_examples,
    matching_files,
    split_fields,
    unlabelled,
)
from pipeline.corpus.sources.source import Example, Rejected, Source
from pipeline.errors import InputError
from pipeline.files import tfrecords

LOOKED_AT = 100  # records of a file, for the names of features


def open_source(argument: str) -> Source:
    pattern, declared = split_fields("tfrecord", argument, ["dtype", "shape"])
    dtype, shape = declared.pop("dtype", ""), declared.pop("shape", "")
    try:
        raw = np.dtype(dtype or "uint8").str, [int(size) for size in shape.split("x")] if shape else [-1]
    except (TypeError, ValueError) as error:
        raise InputError(f"tfrecord:{argument}: {error}. Say dtype=float32, or dtype=uint8,shape=28x28x1.") from None
    files, what = matching_files("tfrecord", pattern), f"tfrecord:{pattern}"
    fields, there = _find_fields(what, declared, [path for path, _ in files])
    return Source(
        kind=kind_of(fields),
        files=None if "path" in fields else [path for path, _ in files],  # the images may have changed
        parts=lambda: [(str(path), name, fields, raw if dtype or shape else None) for path, name in files],
        read=read,
        unlabelled=unlabelled(what, fields, there),
    )


def _find_fields(what: str, declared: Mapping[str, str], files: list[Path]) -> tuple[dict[str, str], list[str]]:
    """Of as many records as it takes: a shard may be empty, and a record may be without an id."""
    there: set[str] = set()
    for record in itertools.chain.from_iterable(itertools.islice(_records(path), LOOKED_AT) for path in files):
        with contextlib.suppress(DecodeError):
            there |= tfrecords.parse_example(record).keys()
        known = there | declared.keys()
        if there >= set(declared.values()) and "label" in known and known & PAYLOADS.keys():
            break
    if not there:
        raise InputError(f"{what}: no tf.train.Example is in it.")
    fields = choose_fields(what, declared, sorted(there))
    return fields | {name: fields.get(name, name) for name in ("id", "group")}, sorted(there)


def read(part: tuple[str, str, dict[str, str], tuple[str, list[int]] | None]) -> Iterator[Example | Rejected]:
    path, name, fields, raw = part
    for number, record in enumerate(_records(Path(path))):
        where = f"{name}:{number:07d}"
        try:
            row = _values(record, fields, raw)
        except ValueError as error:
            yield Rejected(source=where, reason=str(error))
        else:
            yield from make_examples(row, where, Path(path).parent)


def _records(path: Path) -> Iterator[bytes]:
    """Every record. A file that is compressed is unpacked in memory: TensorFlow takes a cut one for a shorter one."""
    with open(path, "rb") as file:
        unpack: Any = {b"\x1f": gzip.decompress, b"\x78": zlib.decompress}.get(file.read(1))
    if not unpack or tfrecords.begins_with_record(path):
        return tfrecords.read_records(path)
    try:
        data = unpack(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: neither TFRecords nor compressed ones: {error}. Make the file again.") from None
    return tfrecords.records_in(io.BytesIO(data), len(data), path)


def _values(record: bytes, fields: Mapping[str, str], raw: tuple[str, list[int]] | None) -> dict[str, Any]:
    """The fields' values. raw: dtype and shape of an array's bytes. Raises ValueError if one is wrong."""
    try:
        features = tfrecords.parse_example(record)
    except DecodeError as error:
        raise ValueError(f"not a tf.train.Example: {error}") from None
    row: dict[str, Any] = {}
    for ours, theirs in fields.items():
        value = features.get(theirs, [])
        if ours == "vector" and isinstance(value, np.ndarray):
            row[ours] = value
        elif len(value) == 1:
            row[ours] = _array(ours, value[0], *raw) if raw and ours in ("image", "vector") else value[0]
        elif ours not in ("label", "id", "group") or len(value):
            raise ValueError(f"{theirs} has {len(value)} values, expected one")
        if ours == "vector" and isinstance(row[ours], bytes) and not row[ours].isascii():
            raise ValueError(f"{theirs} is bytes and no text. Say what numbers they are: dtype=float32")
    return row


def _array(kind: str, value: bytes, dtype: str, shape: list[int]) -> np.ndarray | bytes:
    try:
        array = np.frombuffer(value, dtype).reshape(shape)
        if (kind == "image") != (array.ndim > 1):
            raise ValueError
        return encode_png(array) if kind == "image" else array.astype(np.float32)
    except (ValueError, TypeError, OSError):
        raise ValueError(f"{len(value)} bytes are no {kind} of {np.dtype(dtype)} {shape}") from None
