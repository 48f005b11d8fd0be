"""Where a corpus comes from: a dict of sources, each a list of parts and a way to stream one part's examples.

A part is a small picklable value that names some of the source, by absolute paths; a Beam worker reads it on its own.
No function here holds more of a source than its keys and the part it reads.
"""

import csv
import difflib
import functools
import glob
import gzip
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import records
from pipeline.records import InputError, import_tensorflow

PART_ROWS = 4096
PART_BYTES = 8 << 20
FIELDS = {"path": "image", "image": "image", "text": "text", "vector": "vector"}  # what holds the payload: its kind
KEYS = ("label", "id", "group")
MAX_PIXELS = 50_000_000  # larger images are refused before they are decoded
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One example.

    payload: encoded image bytes, UTF-8 text, or a float32 vector. shape: (height, width, channels), () or (dim,).
    extra: other features to keep, lists of bytes or arrays of int64 or float32.
    """

    id: str
    label: str
    payload: bytes | np.ndarray
    shape: tuple[int, ...]
    group: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """Something in a source that is no example, and why."""

    source: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """What takes a string takes the text after `name:`.

    kind: of the payload, image, text or vector. parts: of the source, as JSON can hold them. read: one part's
    examples. files: whose sizes and times show that nothing changed; None where they cannot.
    """

    kind: Callable[[str], str]
    parts: Callable[[str], list[Any]]
    read: Callable[[Any], Iterator[Example | Rejected]]
    files: Callable[[str], list[Path] | None]
    argument: str = ""
    help: str = field(default="", compare=False)


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [height, width] or [height, width, 1 or 3] as PNG."""
    from PIL import Image

    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def image_shape(encoded: bytes) -> tuple[int, int, int]:
    """(height, width, channels) of a PNG or JPEG that TensorFlow can decode.

    Raises:
      ValueError: saying why it cannot. The header is read first, so a bomb is never unpacked.
    """
    from PIL import Image, UnidentifiedImageError

    tf = import_tensorflow()
    if not encoded:
        raise ValueError("the file is empty")
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            (width, height), channels = image.size, 1 if image.mode in ("1", "L", "LA", "I", "I;16") else 3
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    except UnidentifiedImageError:
        raise ValueError("not a PNG or JPEG") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"not a PNG or JPEG: {error}") from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
    try:
        tf.io.decode_image(encoded, channels=channels, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        reason = re.sub(r"\{\{.*?\}\} ?", "", error.message)[:200]
        raise ValueError(f"does not decode: {reason}") from None
    return height, width, channels


# ---- digits ----


def _digits_parts(argument: str) -> list[Any]:
    if argument:
        raise InputError(f"the source is `digits` alone; found `digits:{argument}`")
    return ["digits"]


def _read_digits(part: str) -> Iterator[Example | Rejected]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0 to 16 there
    for number, (image, label) in enumerate(zip(images, digits.target, strict=True)):
        yield Example(id=f"{number:04d}", label=str(label), payload=encode_png(image), shape=(8, 8, 1))


# ---- images:DIR ----


def _image_files(directory: str) -> list[Path]:
    root = Path(directory)
    if not directory or not root.is_dir():
        raise InputError(f"images:{directory}: not a directory. Give images:DIR, with one folder a class.")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not files:
        raise InputError(f"images:{directory}: no {', '.join(IMAGE_SUFFIXES)} file in it or in its folders.")
    return files


def _image_parts(directory: str) -> list[Any]:
    names = [str(p.relative_to(directory)) for p in _image_files(directory)]
    return [(os.path.abspath(directory), names[i : i + 256]) for i in range(0, len(names), 256)]


def _read_images(part: tuple[str, list[str]]) -> Iterator[Example | Rejected]:
    root, names = part
    for name in names:
        path = Path(root, name)
        try:
            name.encode()
        except UnicodeEncodeError:
            yield Rejected(source=ascii(name), reason="the file's name is not UTF-8")
            continue
        label = Path(name).parent.as_posix()
        if label == ".":
            yield Rejected(source=name, reason="in no class folder")
            continue
        try:
            encoded = path.read_bytes()
            yield Example(id=Path(name).as_posix(), label=label, payload=encoded, shape=image_shape(encoded))
        except (ValueError, OSError) as error:
            yield Rejected(source=name, reason=str(error))


# ---- arrays:FILE.npz ----


class _Npz:
    """An .npz: its labels, ids and groups; of `images` or `vectors` only the rows that are asked for."""

    def __init__(self, path: str):
        self.path = path
        try:
            with zipfile.ZipFile(path) as file:
                members = {member.filename.removesuffix(".npy"): member for member in file.infolist()}
            payload = [name for name in ("images", "vectors") if name in members]
            if len(payload) != 1 or "labels" not in members:
                raise InputError(
                    f"arrays:{path}: needs `labels` and one of `images`, `vectors`; found {sorted(members)}."
                )
            self.name = payload[0]
            self._member = members[self.name]
            with np.load(path, allow_pickle=False) as arrays:
                self.keys = {name: arrays[name] for name in ("labels", "ids", "groups") if name in members}
            with self._open() as file:
                self.shape, self.is_fortran, self.dtype = _read_npy_header(file)
                self._header_bytes = file.tell()
        except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise _not_an_npz(path, error) from None
        for name, values in self.keys.items():
            if values.shape != self.shape[:1]:
                raise InputError(
                    f"arrays:{path}: `{name}` has shape {values.shape}, `{self.name}` has {self.shape[0]} rows."
                )
        is_image = len(self.shape) in (3, 4) and self.shape[3:] in ((), (1,), (3,)) and self.dtype == np.uint8
        if self.name == "images" and not is_image:
            raise InputError(
                f"arrays:{path}: images are uint8 [n, height, width] or [n, height, width, 1 or 3]; "
                f"found {self.dtype} {list(self.shape)}. Give floats as `vectors`."
            )
        if self.name == "vectors" and (len(self.shape) != 2 or self.dtype.kind not in "fiu"):
            raise InputError(f"arrays:{path}: vectors are numbers [n, dim]; found {self.dtype} {list(self.shape)}.")

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

    @property
    def part_rows(self) -> int:
        """Rows that a part has. A compressed array can be read from its start only, so it is one part."""
        return PART_ROWS if self._member.compress_type == zipfile.ZIP_STORED else max(1, self.shape[0])

    def rows(self, start: int, stop: int) -> Iterator[np.ndarray]:
        if self._member.compress_type == zipfile.ZIP_STORED:
            with open(self.path, "rb") as file:  # a member's own header says where its bytes begin
                file.seek(self._member.header_offset)
                name, extra = struct.unpack("<26xHH", file.read(30))
            offset = self._member.header_offset + 30 + name + extra + self._header_bytes
            order: Any = "F" if self.is_fortran else "C"
            yield from np.memmap(self.path, self.dtype, "r", offset, self.shape, order)[start:stop]
        elif self.is_fortran and len(self.shape) > 1:
            raise InputError(
                f"arrays:{self.path}: `{self.name}` is compressed and in Fortran order, it cannot be read row by row. "
                f"Save it with np.savez, or after np.ascontiguousarray."
            )
        else:
            size = int(np.prod(self.shape[1:])) * self.dtype.itemsize
            with self._open() as file:
                file.read(self._header_bytes)
                for _ in range(start, stop):
                    yield np.frombuffer(file.read(size), self.dtype).reshape(self.shape[1:])


def _not_an_npz(path: str, error: Exception) -> InputError:
    return InputError(f"arrays:{path}: {error}. Give an .npz of plain arrays, as np.savez writes it.")


def _read_npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, is_fortran, dtype


@functools.lru_cache(maxsize=1)  # a part is some of its rows
def _cached_npz(path: str, modified: int) -> _Npz:
    return _Npz(path)


def _open_npz(path: str) -> _Npz:
    return _cached_npz(path, os.stat(path).st_mtime_ns if os.path.exists(path) else 0)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _array_parts(path: str) -> list[Any]:
    npz = _open_npz(path)
    npz.check()
    step = npz.part_rows
    place = os.path.abspath(path)
    return [(place, start, min(start + step, npz.shape[0])) for start in range(0, npz.shape[0], step)]


def _array_kind(path: str) -> str:
    return "image" if _open_npz(path).name == "images" else "vector"


def _read_arrays(part: tuple[str, int, int]) -> Iterator[Example | Rejected]:
    path, start, stop = part
    npz = _open_npz(path)
    for row, value in enumerate(npz.rows(start, stop), start):
        try:
            id = _text(npz.keys["ids"][row]) if "ids" in npz.keys else f"{row:010d}"
            label = _text(npz.keys["labels"][row])
            group = _text(npz.keys["groups"][row]) if "groups" in npz.keys else None
        except UnicodeDecodeError:
            yield Rejected(source=f"row {row}", reason="id, label or group is not UTF-8")
            continue
        if npz.name == "images":
            shape = (value.shape[0], value.shape[1], value.shape[2] if value.ndim == 3 else 1)
            yield Example(id=id, label=label, payload=encode_png(value), shape=shape, group=group)
            continue
        vector = value.astype(np.float32)
        if not np.isfinite(vector).all():
            yield Rejected(source=f"row {row}", reason="the vector holds NaN or infinity")
            continue
        yield Example(id=id, label=label, payload=vector, shape=vector.shape, group=group)


# ---- fashion_mnist:DIR ----


def _read_idx(path: Path) -> np.ndarray:
    """A uint8 array in the IDX format (http://yann.lecun.com/exdb/mnist/), gzipped or not."""
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.exists():
            break
    else:
        raise InputError(f"{path} (or {path.name}.gz) is missing. Give fashion_mnist:DIR with the four IDX files.")
    try:
        with gzip.open(candidate) if candidate.suffix == ".gz" else open(candidate, "rb") as file:
            data = file.read()
        zero, kind, dimensions = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
        if (zero, kind) != (0, 8):
            raise ValueError(f"magic number {data[:4].hex()}, expected 0000 08..")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, struct.error, ValueError) as error:
        raise InputError(f"{candidate} is not an IDX file: {error}") from None


def _fashion_mnist_parts(directory: str) -> list[Any]:
    parts = []
    for name in ("train", "t10k"):
        labels = _read_idx(Path(directory, f"{name}-labels-idx1-ubyte"))
        parts += [(os.path.abspath(directory), name, start) for start in range(0, len(labels), PART_ROWS)]
    return parts


def _read_fashion_mnist(part: tuple[str, str, int]) -> Iterator[Example | Rejected]:
    directory, name, start = part
    images = _read_idx(Path(directory, f"{name}-images-idx3-ubyte"))
    labels = _read_idx(Path(directory, f"{name}-labels-idx1-ubyte"))
    for row in range(start, min(start + PART_ROWS, len(images))):
        image = images[row]
        shape = (image.shape[0], image.shape[1], 1)
        yield Example(id=f"{name}-{row:05d}", label=str(labels[row]), payload=encode_png(image), shape=shape)


# ---- csv:FILE, parquet:FILE, tfrecord:GLOB, tfds:NAME: fields with names ----


def split_fields(source: str, argument: str, more: Sequence[str] = ()) -> tuple[str, dict[str, str]]:
    """`FILE,label=category,text=body`: the file, and which of its columns is what."""
    pieces, fields = argument.split(","), {}
    known = [*FIELDS, *KEYS, *more]
    while len(pieces) > 1 and re.match(r"[A-Za-z_]+=", pieces[-1]):
        ours, _, theirs = pieces.pop().partition("=")
        if ours not in known:
            raise InputError(f"{source}:{argument}: {ours}= means nothing{nearest(ours, known)}")
        fields[ours] = theirs
    return ",".join(pieces), fields


def nearest(found: str, known: Sequence[str]) -> str:
    """The end of an error: what was meant, or what there is."""
    near = difflib.get_close_matches(found, known, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}."


def choose_fields(what: str, fields: dict[str, str], there: Sequence[str]) -> dict[str, str]:
    """Which of theirs is what: first the payload's, then `label` and, if there are any, `id` and `group`.

    fields: as declared. there: the names of all columns or features; one called as ours need not be declared.
    """
    for ours, theirs in fields.items():
        if theirs not in there:
            raise InputError(f"{what}: there is no {theirs!r} for {ours}={nearest(theirs, there)}")
    payloads = [ours for ours in FIELDS if ours in fields] or [ours for ours in FIELDS if ours in there]
    if len(payloads) != 1:
        raise InputError(
            f"{what} has {', '.join(there)}. Say which of them is the payload, as one of {', '.join(FIELDS)}: "
            f"{what},text=NAME"
        )
    if "label" not in fields and "label" not in there:
        raise InputError(f"{what} has {', '.join(there)}. Say which of them is the label: {what},label=NAME")
    return {ours: fields.get(ours, ours) for ours in [*payloads, *KEYS] if ours in fields or ours in there}


def make_example(row: dict[str, Any], id: str, root: Path, extra: dict[str, Any] | None = None) -> Example:
    """An example of the values of its fields. id: where the row has none. root: of paths.

    Raises:
      ValueError, OSError: saying what is wrong with it.
    """
    [name] = [name for name in FIELDS if name in row]
    value = row[name]
    text = {key: _as_text(key, row[key]) for key in KEYS if row.get(key) not in (None, "", b"")}
    if "label" not in text:
        raise ValueError("it has no label")
    shape: tuple[int, ...] = ()
    payload: bytes | np.ndarray
    if name == "text":
        payload = _as_text(name, value).encode() if value is not None else b""
        if not payload.strip():
            raise ValueError("the text is empty")
    elif name == "vector":
        if isinstance(value, (str, bytes)):  # of a CSV file
            value = [float(number) for number in re.split(r"[\s,;]+", _as_text(name, value).strip("[]() \t"))]
        payload = np.asarray([] if value is None else value, np.float32)
        if payload.ndim != 1 or not len(payload):
            raise ValueError(f"the vector has shape {list(payload.shape)}")
        if not np.isfinite(payload).all():
            raise ValueError("the vector holds NaN or infinity")
        shape = payload.shape
    else:
        if name == "path":
            path = _as_text(name, value) if value is not None else ""
            id, payload = path, Path(root, path).read_bytes()
        else:
            payload = value["bytes"] if isinstance(value, dict) else value  # as Hugging Face's datasets keep images
        if not isinstance(payload, bytes):
            raise ValueError(f"the image is {type(payload).__name__}, expected the bytes of a PNG or JPEG")
        shape = image_shape(payload)
    return Example(
        id=text.get("id", id), label=text["label"], payload=payload, shape=shape, group=text.get("group"),
        extra=extra or {},
    )  # fmt: skip


def _as_text(name: str, value: Any) -> str:
    try:
        text = _text(value)
        text.encode()  # what was not UTF-8 in a CSV file cannot be encoded
    except UnicodeError:
        raise ValueError(f"its {name} is not UTF-8") from None
    return text


def _files(source: str, pattern: str) -> list[tuple[Path, str]]:
    """The files that match, in order, and each one's name below the part of the pattern that is fixed."""
    root = re.split(r"[*?[]", pattern)[0] if glob.has_magic(pattern) else pattern
    root = root if glob.has_magic(pattern) and root.endswith("/") else os.path.dirname(root)
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise InputError(f"{source}:{pattern}: no such file, and none that matches.")
    return [(Path(path).absolute(), os.path.relpath(path, root or ".")) for path in paths]


def _table_files(source: str) -> Callable[[str], list[Path] | None]:
    def files(argument: str) -> list[Path] | None:
        pattern, fields = split_fields(source, argument)
        there = TABLES[source](_files(source, pattern)[0][0])
        if "path" in choose_fields(f"{source}:{argument}", fields, there):
            return None  # the images may have changed
        return [path for path, _ in _files(source, pattern)]

    return files


def _table_kind(source: str) -> Callable[[str], str]:
    def kind(argument: str) -> str:
        pattern, fields = split_fields(source, argument)
        there = TABLES[source](_files(source, pattern)[0][0])
        return FIELDS[next(iter(choose_fields(f"{source}:{argument}", fields, there)))]

    return kind


# ---- csv:FILE ----


def _csv_rows(path: Path, lines: Iterator[str]) -> Iterator[list[str]]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(lines, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    try:
        yield from filter(None, reader)  # an empty line is no row
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}. Mend that line.") from None


def _decoded(lines: Iterator[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield line.decode("utf-8-sig" if number == 0 else "utf-8", "surrogateescape")


def _csv_columns(path: Path) -> list[str]:
    with open(path, "rb") as file:
        header = next(_csv_rows(path, _decoded(file)), [])
    if len(set(header)) < len(header) or not header:
        raise InputError(f"{path}: the first line must name the columns, each once; found {header}.")
    return header


def _csv_parts(argument: str) -> list[Any]:
    """Byte ranges of whole rows: a line may end inside quotes, so the file is read to find them."""
    pattern, fields = split_fields("csv", argument)
    parts: list[Any] = []
    for path, name in _files("csv", pattern):
        header = _csv_columns(path)
        chosen = choose_fields(f"csv:{path}", fields, header)
        places = {ours: header.index(theirs) for ours, theirs in chosen.items()}
        with open(path, "rb") as file:
            position = 0

            def counted(file: Any = file) -> Iterator[bytes]:
                nonlocal position
                for line in file:
                    position += len(line)
                    yield line

            rows = _csv_rows(path, _decoded(counted()))
            next(rows)
            first, start, count = 0, position, 0
            for count, _ in enumerate(rows, 1):
                if position - start >= PART_BYTES:
                    parts.append((str(path), name, len(header), places, start, position, first))
                    first, start = count, position
            if count > first:
                parts.append((str(path), name, len(header), places, start, position, first))
    return parts


def _read_csv(part: tuple[str, str, int, dict[str, int], int, int, int]) -> Iterator[Example | Rejected]:
    path, name, cells, places, start, stop, first = part
    with open(path, "rb") as file:
        file.seek(start)
        lines = io.BytesIO(file.read(stop - start))
    decoded = (line.decode("utf-8", "surrogateescape") for line in lines)
    for number, row in enumerate(_csv_rows(Path(path), decoded), first):
        where = f"{name}:{number:07d}"
        if len(row) != cells:
            yield Rejected(source=where, reason=f"{len(row)} cells, the header has {cells}")
            continue
        yield _example_or_why({ours: row[place] for ours, place in places.items()}, where, Path(path).parent)


def _example_or_why(row: dict[str, Any], where: str, root: Path, extra: Any = None) -> Example | Rejected:
    try:
        return make_example(row, where, root, extra)
    except (ValueError, OSError) as error:
        return Rejected(source=where, reason=str(error))


# ---- parquet:FILE ----


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from None


def _parquet_columns(path: Path) -> list[str]:
    with _parquet(path) as file:
        return list(file.schema_arrow.names)


def _parquet_parts(argument: str) -> list[Any]:
    pattern, fields = split_fields("parquet", argument)
    parts: list[Any] = []
    for path, name in _files("parquet", pattern):
        chosen = choose_fields(f"parquet:{path}", fields, _parquet_columns(path))
        with _parquet(path) as file:
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        parts += [(str(path), name, chosen, group, sum(rows[:group])) for group in range(len(rows)) if rows[group]]
    return parts


def _read_parquet(part: tuple[str, str, dict[str, str], int, int]) -> Iterator[Example | Rejected]:
    import pyarrow

    path, name, chosen, group, first = part
    with _parquet(Path(path)) as file:
        batches = file.iter_batches(1024, row_groups=[group], columns=list(chosen.values()), use_threads=False)
        number = first
        while True:
            try:
                batch = next(batches, None)
            except (pyarrow.ArrowException, OSError) as error:
                raise InputError(f"{path}: row group {group} is damaged: {error}. Make the file again.") from None
            if batch is None:
                return
            columns = {ours: batch.column(theirs).to_pylist() for ours, theirs in chosen.items()}
            for values in zip(*columns.values(), strict=True):
                row = dict(zip(columns, values, strict=True))
                yield _example_or_why(row, f"{name}:{number:07d}", Path(path).parent)
                number += 1


# ---- tfrecord:GLOB ----


def _tfrecords(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise InputError(f"{path} is compressed; TFRecords are read as they are. Unpack it: gunzip {path}")
    return records.read_records(path)


def _tfrecord_features(path: Path) -> list[str]:
    try:
        return sorted(records.parse_example(next(_tfrecords(path), b"")))
    except Exception as error:  # protobuf raises its own DecodeError, whose class differs by backend
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: the first record is not a tf.train.Example: {error}") from None


def _tfrecord_parts(argument: str) -> list[Any]:
    pattern, fields = split_fields("tfrecord", argument)
    files = _files("tfrecord", pattern)
    chosen = choose_fields(f"tfrecord:{argument}", fields, _tfrecord_features(files[0][0]))
    return [(str(path), name, chosen) for path, name in files]


def _read_tfrecord(part: tuple[str, str, dict[str, str]]) -> Iterator[Example | Rejected]:
    path, name, chosen = part
    for number, record in enumerate(_tfrecords(Path(path))):
        where = f"{name}:{number:07d}"
        try:
            features = records.parse_example(record)
        except Exception as error:  # as above
            yield Rejected(source=where, reason=f"not a tf.train.Example: {error}")
            continue
        row, extra = {}, {}
        wrong = ""
        for ours, theirs in chosen.items():
            value = features.get(theirs, [])
            if ours == "vector" and not isinstance(value, list):
                row[ours] = value
            elif len(value) == 1:
                row[ours] = value[0]
            elif ours not in ("id", "group") or len(value):
                wrong = f"{theirs} has {len(value)} values, expected one"
        if wrong:
            yield Rejected(source=where, reason=wrong)
            continue
        for theirs, value in features.items():
            if theirs not in chosen.values() and len(value):
                extra[theirs] = value
        yield _example_or_why(row, where, Path(path).parent, extra)


# ---- tfds:NAME ----


def _tfds() -> Any:
    try:
        import_tensorflow()
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(f"tfds: {error}. The extra tfds brings it: pip install .[tfds]") from None
    return tensorflow_datasets


def _tfds_open(argument: str) -> tuple[Any, dict[str, str], Path]:
    """The data set's reader, its fields and where it is prepared. Nothing is downloaded."""
    name, fields = split_fields("tfds", argument, ["data_dir"])
    root = fields.pop("data_dir", None) or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    directory = Path(root).expanduser().absolute() / name.replace(":", "/")
    prepared = [path.parent for path in directory.glob("**/dataset_info.json")]
    if not prepared:
        raise InputError(
            f"tfds:{argument}: no prepared data set in {directory}. Prepare it with tensorflow-datasets "
            f"(tfds build {name}), or say where it is: tfds:{name},data_dir=DIR"
        )
    configs = {path.parent for path in prepared if path != directory}
    if len(configs) > 1:
        raise InputError(
            f"tfds:{argument}: {directory} holds several data sets: "
            f"{', '.join(sorted(path.name for path in configs))}. Name one: tfds:{name}/NAME"
        )

    def number(path: Path) -> list[int]:
        return [int(part) for part in path.name.split(".") if part.isdigit()]

    newest = max(prepared, key=number)
    builder = _tfds().builder_from_directory(newest)
    return builder, choose_fields(f"tfds:{argument}", fields, list(builder.info.features)), newest


def _tfds_parts(argument: str) -> list[Any]:
    builder, chosen, directory = _tfds_open(argument)
    return [
        (str(directory), split, start, chosen)
        for split, info in builder.info.splits.items()
        for start in range(0, info.num_examples, PART_ROWS)
    ]


def _read_tfds(part: tuple[str, str, int, dict[str, str]]) -> Iterator[Example | Rejected]:
    directory, split, start, chosen = part
    tfds = _tfds()
    builder = tfds.builder_from_directory(directory)
    features = {theirs: builder.info.features[theirs] for theirs in chosen.values()}
    images = {name: tfds.decode.SkipDecoding() for name, of in features.items() if isinstance(of, tfds.features.Image)}
    stop = min(start + PART_ROWS, builder.info.splits[split].num_examples)
    data = builder.as_dataset(
        split=f"{split}[{start}:{stop}]",
        decoders=tfds.decode.PartialDecoding(dict.fromkeys(features, True), decoders=images),
        read_config=tfds.ReadConfig(add_tfds_id=True, try_autocache=False, interleave_cycle_length=1),
    )
    for example in data.as_numpy_iterator():
        row = {
            ours: features[theirs].int2str(example[theirs])
            if isinstance(features[theirs], tfds.features.ClassLabel) else example[theirs]
            for ours, theirs in chosen.items()
        }  # fmt: skip
        yield _example_or_why(row, example["tfds_id"].decode(), Path(directory))


TABLES = {"csv": _csv_columns, "parquet": _parquet_columns, "tfrecord": _tfrecord_features}
SOURCES = {
    "digits": Source(
        kind=lambda _: "image", parts=_digits_parts, read=_read_digits, files=lambda _: [],
        help="scikit-learn's 1,797 digits",
    ),
    "images": Source(
        kind=lambda _: "image", parts=_image_parts, read=_read_images, files=_image_files, argument="DIR",
        help="one folder a class, PNG or JPEG; nested folders make its name",
    ),
    "csv": Source(
        kind=_table_kind("csv"), parts=_csv_parts, read=_read_csv, files=_table_files("csv"),
        argument="FILE,label=COLUMN", help="text=, path= (of images) or vector=, label=, id=, group= COLUMN",
    ),
    "parquet": Source(
        kind=_table_kind("parquet"), parts=_parquet_parts, read=_read_parquet, files=_table_files("parquet"),
        argument="FILE,label=COLUMN", help="the same, or image= (encoded bytes)",
    ),
    "tfrecord": Source(
        kind=_table_kind("tfrecord"), parts=_tfrecord_parts, read=_read_tfrecord, files=_table_files("tfrecord"),
        argument="GLOB,label=FEATURE", help="image=, text= or vector=; other features pass through",
    ),
    "tfds": Source(
        kind=lambda argument: FIELDS[next(iter(_tfds_open(argument)[1]))], parts=_tfds_parts, read=_read_tfds,
        files=lambda argument: sorted(path for path in _tfds_open(argument)[2].iterdir() if path.is_file()),
        argument="NAME,label=FEATURE", help="prepared on disk by tensorflow-datasets; data_dir=",
    ),
    "arrays": Source(
        kind=_array_kind, parts=_array_parts, read=_read_arrays, files=lambda path: [Path(path)],
        argument="FILE.npz", help="images or vectors, labels, and if you like ids, groups",
    ),
    "fashion_mnist": Source(
        kind=lambda _: "image", parts=_fashion_mnist_parts, read=_read_fashion_mnist, argument="DIR",
        files=lambda directory: sorted(Path(directory).glob("*-ubyte*")),
        help="the four IDX files",
    ),
}  # fmt: skip


def open_source(text: str) -> tuple[str, Source, str]:
    """Splits `name:argument`. Returns the name, its source and the argument."""
    name, _, argument = text.partition(":")
    if name not in SOURCES:
        known = ", ".join(n + (f":{s.argument}" if s.argument else "") for n, s in SOURCES.items())
        near = difflib.get_close_matches(name, SOURCES, 1)
        raise InputError(
            f"no source is called {name!r}; " + (f"did you mean {near[0]}? " if near else "") + f"There are {known}."
        )
    return name, SOURCES[name], argument
