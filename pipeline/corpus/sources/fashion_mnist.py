"""`fashion_mnist:DIR`: the four IDX files of MNIST's kin (http://yann.lecun.com/exdb/mnist/)."""

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.sources.encoding import encode_png
from pipeline.corpus.sources.source import PART_ROWS, Example, Source
from pipeline.errors import InputError


def open_source(argument: str) -> Source:
    rows = {name: len(read_split(argument, name)[1]) for name in ("train", "t10k")}

    def parts() -> list[Any]:
        place = os.path.abspath(argument)
        return [(place, name, start) for name, count in rows.items() for start in range(0, count, PART_ROWS)]

    return Source(kind="image", files=sorted(Path(argument).glob("*-ubyte*")), parts=parts, read=read)


def read(part: tuple[str, str, int]) -> Iterator[Example]:
    directory, name, start = part
    images, labels = read_split(directory, name)
    for row in range(start, min(start + PART_ROWS, len(images))):
        shape = (*images[row].shape, 1)
        yield Example(id=f"{name}-{row:05d}", label=str(labels[row]), payload=encode_png(images[row]), shape=shape)


def read_split(directory: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, height, width], and labels uint8 [n]."""
    paths = [Path(directory, f"{name}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    images, labels = map(read_idx, paths)
    if len(images) != len(labels):
        raise InputError(
            f"{paths[0]} holds {len(images)} images, {paths[1]} holds {len(labels)} labels. Get both files again."
        )
    return images, labels


def read_idx(path: Path) -> np.ndarray:
    """A uint8 array in the IDX format, gzipped or not."""
    zipped = path.with_name(path.name + ".gz")
    found = path if path.exists() else zipped
    if not found.exists():
        raise InputError(f"{path} (or {zipped.name}) is missing. Give fashion_mnist:DIR with the four IDX files.")
    try:
        data = gzip.decompress(found.read_bytes()) if found == zipped else found.read_bytes()
        zero, kind, dimensions = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
        if (zero, kind) != (0, 8):
            raise ValueError(f"magic number {data[:4].hex()}, expected 0000 08..")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise InputError(f"{found} is not an IDX file: {error}") from None
