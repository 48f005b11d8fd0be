"""`images:DIR`: one folder a class."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.corpus.sources.encoding import image_shape
from pipeline.corpus.sources.source import Example, Rejected, Source
from pipeline.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg")
PART_FILES = 256


def open_source(argument: str) -> Source:
    root = Path(argument)
    if not argument or not root.is_dir():
        raise InputError(f"images:{argument}: not a directory. Give images:DIR, with one folder a class.")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"images:{argument}: no {', '.join(SUFFIXES)} file in it or in its folders.")
    names = [str(path.relative_to(root)) for path in files]

    def parts() -> list[Any]:
        return [(os.path.abspath(root), names[i : i + PART_FILES]) for i in range(0, len(names), PART_FILES)]

    return Source(kind="image", files=files, parts=parts, read=read)


def read(part: tuple[str, list[str]]) -> Iterator[Example | Rejected]:
    root, names = part
    for name in names:
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
            encoded = Path(root, name).read_bytes()
            yield Example(id=Path(name).as_posix(), label=label, payload=encoded, shape=image_shape(encoded))
        except (ValueError, OSError) as error:
            yield Rejected(source=name, reason=str(error))
