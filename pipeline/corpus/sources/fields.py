"""Fields with names: which columns of a table, or features of a record, are an example's payload, label, id, group."""

import difflib
import glob
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.corpus.sources.encoding import EncodedImage, read_image
from pipeline.corpus.sources.source import ROLES, SPLIT_NAMES, Example, Rejected
from pipeline.errors import InputError

PAYLOADS = {"path": "image", "image": "image", "text": "text", "vector": "vector"}  # a field, and its payload's kind
PAIRS = {"anchor": "query", "positive": "pos", "negative": "neg"}  # texts without labels, and what else they are called
KEYS = ("label", "id", "group", "split")
LABEL = 80  # characters of an anchor that name its pair


def matching_files(source: str, pattern: str) -> list[tuple[Path, str]]:
    """The files that match, in order, and each one's name below the part of the pattern that is fixed.

    A file that is there is meant, whatever its name.
    """
    if os.path.isfile(pattern):
        return [(Path(pattern).absolute(), os.path.basename(pattern))]
    fixed = re.split(r"[*?[]", pattern)[0]
    root = fixed if glob.has_magic(pattern) and fixed.endswith("/") else os.path.dirname(fixed)
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise InputError(f"{source}:{pattern}: no such file, and none that matches.")
    return [(Path(path).absolute(), os.path.relpath(path, root or ".")) for path in paths]


def split_fields(source: str, argument: str, more: Sequence[str] = ()) -> tuple[str, dict[str, str]]:
    """`FILE,label=category,text="body, long"`: the file, and what its columns are. more: what else one may say."""
    fields: dict[str, str] = {}
    known = [*PAYLOADS, *PAIRS, *KEYS, "role", *more]
    while not os.path.isfile(argument) and (found := _LAST_FIELD.fullmatch(argument)):
        argument, ours, theirs = found.groups()
        if ours not in known:
            raise InputError(f"{source}:{argument},{ours}={theirs}: {ours}= means nothing{_nearest(ours, known)}")
        is_quoted = len(theirs) > 1 and theirs[0] == theirs[-1] == '"'
        fields[ours] = theirs[1:-1].replace('""', '"') if is_quoted else theirs
    return argument, fields


_LAST_FIELD = re.compile(r'(.*),([A-Za-z_]+)=("(?:[^"]|"")*"|[^,]*)', re.DOTALL)


def choose_fields(what: str, declared: Mapping[str, str], there: Sequence[str]) -> dict[str, str]:
    """Which of theirs is what: first the payload's, then those of `label`, `id` and others that there are.

    there: the names of all columns or features; one called as ours need not be declared.
    """
    for ours, theirs in declared.items():
        if theirs not in there:
            raise InputError(f"{what}: there is no {theirs!r} for {ours}={_nearest(theirs, there)}")
    pairs = {ours: declared.get(ours, ours if ours in there else other) for ours, other in PAIRS.items()}
    pairs = {ours: theirs for ours, theirs in pairs.items() if theirs in there}
    if {"anchor", "positive"} <= pairs.keys() and not {"label", *PAYLOADS} & declared.keys() and "label" not in there:
        split = declared.get("split", "split")
        return pairs | ({"split": split} if split in there else {})
    payloads = [ours for ours in PAYLOADS if ours in declared] or [ours for ours in PAYLOADS if ours in there]
    if len(payloads) != 1:
        raise InputError(
            f"{what} has {', '.join(there)}. Say which of them is the payload, as one of {', '.join(PAYLOADS)}: "
            f"{what},text=NAME"
        )
    fields = {ours: declared.get(ours, ours) for ours in [*payloads, *KEYS] if ours in declared or ours in there}
    fields |= {"role": declared["role"]} if "role" in declared else {}
    for theirs in fields.values():
        if there.count(theirs) > 1:
            raise InputError(f"{what}: {theirs!r} is there {there.count(theirs)} times. Give each its own name.")
    return fields


def unlabelled(what: str, fields: Mapping[str, str], there: Sequence[str]) -> str:
    """What to say to those who need labels; nothing if there are labels."""
    if {"label", "anchor"} & fields.keys():
        return ""
    return f"{what} has {', '.join(there)}. Say which of them is the label: {what},label=NAME"


def kind_of(fields: Mapping[str, str]) -> str:
    return PAYLOADS.get(next(iter(fields)), "text")


def _nearest(found: str, known: Sequence[str]) -> str:
    """The end of an error: what was meant, or what there is."""
    near = difflib.get_close_matches(found, known, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}."


def make_examples(row: Mapping[str, Any], where: str, root: Path, inside: str = ".") -> Iterable[Example | Rejected]:
    """The examples of a row: one, or those of a pair. See `make_example`."""
    return _pair(row, where) if "anchor" in row else (make_example(row, where, root, inside),)


def _pair(row: Mapping[str, Any], where: str) -> Iterator[Example | Rejected]:
    """An anchor and its positives under one label, the anchor's text; each negative under its own text."""
    texts = {ours: value if isinstance(value, list) else [value] for ours, value in row.items() if ours in PAIRS}
    try:
        anchor = as_key("anchor", row["anchor"])
        if anchor is None:
            raise ValueError("its anchor is empty")
    except ValueError as error:
        yield Rejected(source=where, reason=str(error))
        return
    for ours, values in texts.items():
        for number, value in enumerate(values):
            if value is None and ours == "negative":
                continue
            name = str(value) if ours == "negative" else anchor
            if len(name) > LABEL:
                name = f"{name[:LABEL]} {hashlib.sha256(name.encode()).hexdigest()[:8]}"
            own = {"text": value, "label": name, "split": row.get("split")}
            found = make_example(own, f"{where}/{ours}-{number}", Path())
            yield msgspec.structs.replace(found, side=ours) if isinstance(found, Example) else found


def make_example(row: Mapping[str, Any], where: str, root: Path, inside: str = ".") -> Example | Rejected:
    """An example of its fields' values, or why it is none.

    where: its id if the row has none. root: of paths. inside: the folder in which files are read, from root.
    """
    try:
        keys = {key: text for key in KEYS if key in row and (text := as_key(key, row[key])) is not None}
        split, role = split_of(keys.get("split")), as_key("role", row.get("role"))
        if role not in (None, "train", *ROLES):
            raise ValueError(f"its role is {role!r}, expected {', '.join(ROLES)} or train")
        if role == "train":  # as In-shop Clothes has it
            role, split = None, split or "train"
        elif role and split is None:
            split = "eval"
        [name] = [name for name in PAYLOADS if name in row]
        id, value = keys.get("id", where), row[name]
        if name == "path":
            path = "" if value is None else _as_text(name, value)
            id, value = keys.get("id", path), _file(Path(root, path), Path(root, inside)).read_bytes()
        payload, shape, bits = _READ[PAYLOADS[name]](value)
        return Example(
            id=id, label=keys.get("label"), payload=payload, shape=shape, group=keys.get("group"), bits=bits, role=role,
            split=split, id_given="id" in keys, place=where,
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
        return Rejected(source=where, reason=f"{row['path']!a}: {error}" if row.get("path") else str(error))


def split_of(name: str | None) -> str | None:
    """The split that is meant. Raises ValueError if it is none of SPLIT_NAMES."""
    if name is None:
        return None
    if name.lower() not in SPLIT_NAMES:
        raise ValueError(f"its split is {str(name)!r}, expected one of {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[name.lower()]


def as_key(name: str, value: Any) -> str | None:
    """The text of a label, id or group; None of what stands for none: empty, NaN, NaT. Raises ValueError of many."""
    if value is None:
        return None
    if not isinstance(value, str):
        if isinstance(value, (list, tuple, dict, set, np.ndarray)):
            raise ValueError(f"its {name} is a {type(value).__name__}, {str(value)[:80]}, expected one name")
        if value != value:  # as NaN and NaT are
            return None
    text = _as_text(name, value)
    return None if not text or text.isspace() else text


def _file(path: Path, inside: Path) -> Path:
    """The path, if a regular file in that folder is there; what is none, a device or a pipe, may never end."""
    if not path.resolve().is_relative_to(inside.resolve()):
        raise ValueError(f"{path} lies outside of {inside.resolve()}; inside=DIR names another folder")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file")
    return path


def _read_text(value: Any) -> tuple[bytes, tuple[int, ...], None]:
    if isinstance(value, (list, tuple, dict, np.ndarray)):
        raise ValueError(f"its text is a {type(value).__name__}, expected one text")
    text = "" if value is None else _as_text("text", value)
    if not text or text.isspace():
        raise ValueError("the text is empty")
    return text.encode(), (), None


def _read_vector(value: Any) -> tuple[np.ndarray, tuple[int, ...], None]:
    if isinstance(value, (str, bytes)):  # of a CSV file
        value = [float(number) for number in re.split(r"[\s,;]+", _as_text("vector", value).strip("[]() \t"))]
    vector = np.asarray([] if value is None else value, np.float32)
    if vector.ndim != 1 or not len(vector):
        raise ValueError(f"the vector has shape {list(vector.shape)}")
    if not np.isfinite(vector).all():
        raise ValueError("the vector holds NaN or infinity")
    return vector, vector.shape, None


def _read_image(value: Any) -> EncodedImage:
    encoded = value["bytes"] if isinstance(value, dict) else value  # as Hugging Face's datasets keep images
    if not isinstance(encoded, bytes):
        raise ValueError(f"the image is {type(encoded).__name__}, expected the bytes of an encoded image")
    return read_image(io.BytesIO(encoded))


_READ: dict[str, Callable[[Any], tuple[bytes | np.ndarray, tuple[int, ...], int | None]]] = {
    "image": _read_image, "text": _read_text, "vector": _read_vector,
}  # fmt: skip


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, str) and value.isascii():  # as most are, three a row
        return value
    try:
        text = value.decode() if isinstance(value, bytes) else str(value)
        text.encode()  # a JSON file may hold half a character
    except UnicodeError:
        raise ValueError(f"its {name} is not UTF-8") from None
    return text
