"""Where a corpus comes from: a dict of sources, each a list of parts and a way to stream one part's examples.

A part is a small picklable value that names some of the source; a Beam worker reads it on its own.
"""

import functools
import gzip
import io
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.records import InputError, import_tensorflow

PART_ROWS = 4096
MAX_PIXELS = 50_000_000  # larger images are refused before they are decoded
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One example. payload: encoded image bytes, or a float32 vector; shape: (height, width, channels) or (dim,)."""

    id: str
    label: str
    payload: bytes | np.ndarray
    shape: tuple[int, ...]
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """Something in a source that is no example, and why."""

    source: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """kind: of the payload, image or vector. parts: from the text after `name:`. read: one part's examples."""

    kind: Callable[[str], str]
    parts: Callable[[str], list[Any]]
    read: Callable[[Any], Iterator[Example | Rejected]]
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


def _image_parts(directory: str) -> list[Any]:
    root = Path(directory)
    if not directory or not root.is_dir():
        raise InputError(f"images:{directory}: not a directory. Give images:DIR, with one folder a class.")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not files:
        raise InputError(f"images:{directory}: no {', '.join(IMAGE_SUFFIXES)} file in it or in its folders.")
    names = [os.fsencode(p.relative_to(root)) for p in files]  # as bytes: Beam's coders refuse what is not UTF-8
    return [(directory, names[i : i + 256]) for i in range(0, len(names), 256)]


def _read_images(part: tuple[str, list[bytes]]) -> Iterator[Example | Rejected]:
    root, names = part
    for name in map(os.fsdecode, names):
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


@functools.lru_cache(maxsize=1)  # a part is some of its rows
def _open_npz(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"arrays:{path}: {error}. Give an .npz of plain arrays, as np.savez writes it.") from None
    payload = [name for name in ("images", "vectors") if name in arrays]
    if len(payload) != 1 or "labels" not in arrays:
        raise InputError(f"arrays:{path}: needs `labels` and one of `images`, `vectors`; found {sorted(arrays)}.")
    name, rows = payload[0], len(arrays[payload[0]])
    for other in ("labels", "ids", "groups"):
        if other in arrays and arrays[other].shape != (rows,):
            raise InputError(f"arrays:{path}: `{other}` has shape {arrays[other].shape}, `{name}` has {rows} rows.")
    shape, dtype = arrays[name].shape, arrays[name].dtype
    if name == "images" and (dtype != np.uint8 or len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,))):
        raise InputError(
            f"arrays:{path}: images are uint8 [n, height, width] or [n, height, width, 1 or 3]; "
            f"found {dtype} {list(shape)}. Give floats as `vectors`."
        )
    if name == "vectors" and (len(shape) != 2 or dtype.kind not in "fiu"):
        raise InputError(f"arrays:{path}: vectors are numbers [n, dim]; found {dtype} {list(shape)}.")
    return arrays


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _array_parts(path: str) -> list[Any]:
    arrays = _open_npz(path)
    return [(path, start) for start in range(0, len(arrays["labels"]), PART_ROWS)]


def _array_kind(path: str) -> str:
    return "image" if "images" in _open_npz(path) else "vector"


def _read_arrays(part: tuple[str, int]) -> Iterator[Example | Rejected]:
    path, start = part
    arrays = _open_npz(path)
    for row in range(start, min(start + PART_ROWS, len(arrays["labels"]))):
        try:
            id = _text(arrays["ids"][row]) if "ids" in arrays else f"{row:010d}"
            label = _text(arrays["labels"][row])
            group = _text(arrays["groups"][row]) if "groups" in arrays else None
        except UnicodeDecodeError:
            yield Rejected(source=f"row {row}", reason="id, label or group is not UTF-8")
            continue
        if "images" in arrays:
            image = arrays["images"][row]
            shape = (image.shape[0], image.shape[1], image.shape[2] if image.ndim == 3 else 1)
            yield Example(id=id, label=label, payload=encode_png(image), shape=shape, group=group)
            continue
        vector = arrays["vectors"][row].astype(np.float32)
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
        parts += [(directory, name, start) for start in range(0, len(labels), PART_ROWS)]
    return parts


def _read_fashion_mnist(part: tuple[str, str, int]) -> Iterator[Example | Rejected]:
    directory, name, start = part
    images = _read_idx(Path(directory, f"{name}-images-idx3-ubyte"))
    labels = _read_idx(Path(directory, f"{name}-labels-idx1-ubyte"))
    for row in range(start, min(start + PART_ROWS, len(images))):
        image = images[row]
        shape = (image.shape[0], image.shape[1], 1)
        yield Example(id=f"{name}-{row:05d}", label=str(labels[row]), payload=encode_png(image), shape=shape)


SOURCES = {
    "digits": Source(
        kind=lambda _: "image", parts=_digits_parts, read=_read_digits, help="scikit-learn's 1,797 digits"
    ),
    "images": Source(
        kind=lambda _: "image", parts=_image_parts, read=_read_images, argument="DIR",
        help="one folder a class, PNG or JPEG; nested folders make the class name",
    ),
    "arrays": Source(
        kind=_array_kind, parts=_array_parts, read=_read_arrays, argument="FILE.npz",
        help="`images` or `vectors`, `labels`, optional `ids` and `groups`",
    ),
    "fashion_mnist": Source(
        kind=lambda _: "image", parts=_fashion_mnist_parts, read=_read_fashion_mnist, argument="DIR",
        help="the four IDX files",
    ),
}  # fmt: skip


def open_source(text: str) -> tuple[str, Source, str]:
    """Splits `name:argument`. Returns the name, its source and the argument."""
    name, _, argument = text.partition(":")
    if name not in SOURCES:
        known = ", ".join(n + (f":{s.argument}" if s.argument else "") for n, s in SOURCES.items())
        raise InputError(f"no source is called {name!r}; there are {known}.")
    return name, SOURCES[name], argument
