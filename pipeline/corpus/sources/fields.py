"""Fields with names: which columns of a table, or features of a record, are an example's payload, label, id, group."""

import difflib
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.sources.encoding import image_shape
from pipeline.corpus.sources.source import Example, Rejected, Source
from pipeline.errors import InputError

PAYLOADS = {"path": "image", "image": "image", "text": "text", "vector": "vector"}  # a field, and its payload's kind
KEYS = ("label", "id", "group")


def open_tables(
    source: str,
    argument: str,
    columns: Callable[[Path], list[str]],
    parts: Callable[[Path, str, dict[str, str]], Iterable[Any]],
    read: Callable[[Any], Iterator[Example | Rejected]],
) -> Source:
    """The source of `PATTERN,field=column,...`: the fields of its first file are those of all.

    columns: of a file. parts: of a file, its name below the fixed part of the pattern, and its fields.
    """
    pattern, declared = split_fields(source, argument)
    files = _matching_files(source, pattern)
    fields = choose_fields(f"{source}:{pattern}", declared, columns(files[0][0]))
    return Source(
        kind=kind_of(fields),
        files=None if "path" in fields else [path for path, _ in files],  # the images may have changed
        parts=lambda: [part for path, name in files for part in parts(path, name, fields)],
        read=read,
    )


def _matching_files(source: str, pattern: str) -> list[tuple[Path, str]]:
    """The files that match, in order, and each one's name below the part of the pattern that is fixed."""
    fixed = re.split(r"[*?[]", pattern)[0]
    root = fixed if glob.has_magic(pattern) and fixed.endswith("/") else os.path.dirname(fixed)
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise InputError(f"{source}:{pattern}: no such file, and none that matches.")
    return [(Path(path).absolute(), os.path.relpath(path, root or ".")) for path in paths]


def split_fields(source: str, argument: str, more: Sequence[str] = ()) -> tuple[str, dict[str, str]]:
    """`FILE,label=category,text=body`: the file, and which of its columns is what. more: other fields there may be."""
    pieces, fields = argument.split(","), {}
    known = [*PAYLOADS, *KEYS, *more]
    while len(pieces) > 1 and re.match(r"[A-Za-z_]+=", pieces[-1]):
        ours, _, theirs = pieces.pop().partition("=")
        if ours not in known:
            raise InputError(f"{source}:{argument}: {ours}= means nothing{_nearest(ours, known)}")
        fields[ours] = theirs
    return ",".join(pieces), fields


def choose_fields(what: str, declared: Mapping[str, str], there: Sequence[str]) -> dict[str, str]:
    """Which of theirs is what: first the payload's, then `label` and, if there are any, `id` and `group`.

    there: the names of all columns or features; one called as ours need not be declared.
    """
    for ours, theirs in declared.items():
        if theirs not in there:
            raise InputError(f"{what}: there is no {theirs!r} for {ours}={_nearest(theirs, there)}")
    payloads = [ours for ours in PAYLOADS if ours in declared] or [ours for ours in PAYLOADS if ours in there]
    if len(payloads) != 1:
        raise InputError(
            f"{what} has {', '.join(there)}. Say which of them is the payload, as one of {', '.join(PAYLOADS)}: "
            f"{what},text=NAME"
        )
    if "label" not in declared and "label" not in there:
        raise InputError(f"{what} has {', '.join(there)}. Say which of them is the label: {what},label=NAME")
    return {ours: declared.get(ours, ours) for ours in [*payloads, *KEYS] if ours in declared or ours in there}


def kind_of(fields: Mapping[str, str]) -> str:
    return PAYLOADS[next(iter(fields))]


def _nearest(found: str, known: Sequence[str]) -> str:
    """The end of an error: what was meant, or what there is."""
    near = difflib.get_close_matches(found, known, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}."


def make_example(row: Mapping[str, Any], where: str, root: Path) -> Example | Rejected:
    """An example of its fields' values, or why it is none. where: its id if the row has none. root: of paths."""
    try:
        keys = {key: _as_text(key, row[key]) for key in KEYS if row.get(key) not in (None, "", b"")}
        if "label" not in keys:
            raise ValueError("it has no label")
        [name] = [name for name in PAYLOADS if name in row]
        id, value = keys.get("id", where), row[name]
        if name == "path":
            path = "" if value is None else _as_text(name, value)
            id, value = keys.get("id", path), Path(root, path).read_bytes()
        payload, shape = _READ[PAYLOADS[name]](value)
        return Example(id=id, label=keys["label"], payload=payload, shape=shape, group=keys.get("group"))
    except (ValueError, OSError) as error:
        return Rejected(source=where, reason=str(error))


def _read_text(value: Any) -> tuple[bytes, tuple[int, ...]]:
    text = "" if value is None else _as_text("text", value)
    if not text.strip():
        raise ValueError("the text is empty")
    return text.encode(), ()


def _read_vector(value: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    if isinstance(value, (str, bytes)):  # of a CSV file
        value = [float(number) for number in re.split(r"[\s,;]+", _as_text("vector", value).strip("[]() \t"))]
    vector = np.asarray([] if value is None else value, np.float32)
    if vector.ndim != 1 or not len(vector):
        raise ValueError(f"the vector has shape {list(vector.shape)}")
    if not np.isfinite(vector).all():
        raise ValueError("the vector holds NaN or infinity")
    return vector, vector.shape


def _read_image(value: Any) -> tuple[bytes, tuple[int, ...]]:
    encoded = value["bytes"] if isinstance(value, dict) else value  # as Hugging Face's datasets keep images
    if not isinstance(encoded, bytes):
        raise ValueError(f"the image is {type(encoded).__name__}, expected the bytes of a PNG or JPEG")
    return encoded, image_shape(encoded)


_READ: dict[str, Callable[[Any], tuple[bytes | np.ndarray, tuple[int, ...]]]] = {
    "image": _read_image, "text": _read_text, "vector": _read_vector,
}  # fmt: skip


def _as_text(name: str, value: Any) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else str(value)
        text.encode()  # what was not UTF-8 in a CSV file cannot be encoded
    except UnicodeError:
        raise ValueError(f"its {name} is not UTF-8") from None
    return text
