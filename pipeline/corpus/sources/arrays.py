"""`arrays:FILE.npz`: images or vectors with their labels, as np.savez writes them."""

import functools
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.sources.encoding import encode_png
from pipeline.corpus.sources.fields import as_key, split_of
from pipeline.corpus.sources.source import PART_ROWS, Example, Rejected, Source
from pipeline.errors import InputError

MOST_ROWS = 8 * PART_ROWS  # of a part of small rows: each shard is put together from rows of all parts
PART_BYTES = 8 << 20
KEYS = ("labels", "ids", "groups", "splits")


def open_source(argument: str, part_rows: int | None = None) -> Source:
    npz = Npz(argument)

    def parts() -> list[Any]:
        npz.check()
        rows, place = npz.shape[0], os.path.abspath(argument)
        small = min(MOST_ROWS, PART_BYTES // max(1, npz.row_bytes))
        step = part_rows or max(PART_ROWS, small)
        if not npz.is_stored:  # what is compressed is read from its start only
            step = max(1, rows)
        return [(place, start, min(start + step, rows)) for start in range(0, rows, step)]

    return Source(
        kind="image" if npz.name == "images" else "vector", files=[Path(argument)], parts=parts, read=read,
        unlabelled="" if "labels" in npz.keys else f"arrays:{argument}: needs `labels` beside `{npz.name}`.",
    )  # fmt: skip


def read(part: tuple[str, int, int]) -> Iterator[Example | Rejected]:
    path, start, stop = part
    npz = _cached(path, os.stat(path).st_mtime_ns)
    for row, value in enumerate(npz.rows(start, stop), start):
        try:
            keys = {name: as_key(name.removesuffix("s"), values[row]) for name, values in npz.keys.items()}
            split = split_of(keys.get("splits"))
        except ValueError as error:
            yield Rejected(source=f"row {row}", reason=str(error))
            continue
        payload: bytes | np.ndarray
        if npz.name == "images":
            payload, shape = encode_png(value), (*value.shape, 1)[:3]
        else:
            with np.errstate(over="ignore"):
                payload, shape = value.astype(np.float32), value.shape
            if not np.isfinite(payload).all():
                what = "NaN or infinity" if not np.isfinite(value).all() else "a number too large for float32"
                yield Rejected(source=f"row {row}", reason=f"the vector holds {what}")
                continue
        id = keys.get("ids") or f"{row:010d}"
        yield Example(
            id=id, label=keys.get("labels"), payload=payload, shape=shape, group=keys.get("groups"),
            split=split, id_given=bool(keys.get("ids")), place=f"row {row}",
        )  # fmt: skip


class Npz:
    """An .npz: its labels, ids, groups and splits; of `images` or `vectors` only the rows that are asked for."""

    def __init__(self, path: str):
        self.path = path
        try:
            with zipfile.ZipFile(path) as file:
                members = {member.filename.removesuffix(".npy"): member for member in file.infolist()}
            payload = [name for name in ("images", "vectors") if name in members]
            if len(payload) != 1 or not members.keys() <= {*payload, *KEYS}:
                raise InputError(
                    f"arrays:{path} holds {', '.join(sorted(members))}. Give one of images or vectors, and of "
                    f"{', '.join(KEYS)} those that there are; no others."
                )
            self.name = payload[0]
            self._member = members[self.name]
            self.is_stored = self._member.compress_type == zipfile.ZIP_STORED
            with np.load(path, allow_pickle=False) as arrays:
                self.keys = {name: arrays[name] for name in KEYS if name in members}
            with self._open() as file:
                np.lib.format.read_magic(file)  # 1.0, as np.savez writes
                self.shape, self.is_fortran, self.dtype = np.lib.format.read_array_header_1_0(file)
                self._header_bytes = file.tell()
        except InputError:
            raise
        except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise _not_an_npz(path, error) from None
        is_image = len(self.shape) in (3, 4) and self.shape[3:] in ((), (1,), (3,)) and self.dtype == np.uint8
        if self.name == "images" and not is_image:
            raise InputError(
                f"arrays:{path}: images are uint8 [n, height, width] or [n, height, width, 1 or 3]; "
                f"found {self.dtype} {list(self.shape)}. Give floats as `vectors`."
            )
        if self.name == "vectors" and (len(self.shape) != 2 or self.dtype.kind not in "fiu"):
            raise InputError(f"arrays:{path}: vectors are numbers [n, dim]; found {self.dtype} {list(self.shape)}.")
        for name, values in self.keys.items():
            if values.shape != self.shape[:1]:
                raise InputError(
                    f"arrays:{path}: `{name}` has shape {values.shape}, `{self.name}` has {self.shape[0]} rows."
                )

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize

    def _open(self) -> Any:
        return zipfile.ZipFile(self.path).open(self._member)

    def check(self) -> None:
        """Reads the payload once, as a stream, for its checksum."""
        try:
            with self._open() as file:
                while file.read(1 << 24):
                    pass
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise _not_an_npz(self.path, error) from None

    def rows(self, start: int, stop: int) -> Iterator[np.ndarray]:
        if self.is_stored:
            with open(self.path, "rb") as file:  # a member's own header says where its bytes begin
                file.seek(self._member.header_offset)
                name, extra = struct.unpack("<26xHH", file.read(30))
            offset = self._member.header_offset + 30 + name + extra + self._header_bytes
            order: Any = "F" if self.is_fortran else "C"
            mapped = np.memmap(self.path, self.dtype, "r", offset, self.shape, order)
            yield from np.asarray(mapped)[start:stop]  # a row of a memmap takes long to make
        elif self.is_fortran:  # a row's numbers are all over the file
            with np.load(self.path, allow_pickle=False) as arrays:
                yield from arrays[self.name][start:stop]
        else:
            with self._open() as file:
                file.read(self._header_bytes)
                for _ in range(start, stop):
                    yield np.frombuffer(file.read(self.row_bytes), self.dtype).reshape(self.shape[1:])


@functools.lru_cache(maxsize=1)  # a part is some of its rows
def _cached(path: str, modified: int) -> Npz:
    return Npz(path)


def _not_an_npz(path: str, error: Exception) -> InputError:
    return InputError(f"arrays:{path}: {error}. Give an .npz of plain arrays, as np.savez writes it.")
