"""`images:DIR`: one folder a class; these may lie in folders train, val and test, which are its splits then."""

import collections
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.corpus.sources.encoding import read_image
from pipeline.corpus.sources.source import SPLIT_NAMES, Example, Rejected, Source
from pipeline.errors import InputError

PART_FILES = 256
GIVE = "Give images:DIR, with one folder a class."
LEFT_BY_SYSTEMS = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir")


def open_source(argument: str) -> Source:
    root = Path(argument)
    if not argument or not root.is_dir():
        raise InputError(f"images:{argument}: not a directory. {GIVE}")
    files = _files(root)
    labelled = any(path.parent != root for path in files)
    names = [str(path.relative_to(root)) for path in files]
    split = _in_splits(names)

    def parts() -> list[Any]:
        return [(os.path.abspath(root), names[i : i + PART_FILES], split) for i in range(0, len(names), PART_FILES)]

    there = [path for path in files if path.is_file()]  # but links to nothing, which are rejected
    return Source(
        kind="image", files=there, parts=parts, read=read,
        unlabelled="" if labelled else f"images:{argument}: no folder with files in it. {GIVE}",
    )  # fmt: skip


def _files(root: Path) -> list[Path]:
    """The files of a folder and of those in it, but hidden ones. Links to folders are followed, to each folder once."""
    found: list[Path] = []
    been: set[Path] = set()
    folders = collections.deque([root])
    while folders:
        real = (folder := folders.popleft()).resolve()
        shown = [] if real in been else [path for path in folder.iterdir() if _is_shown(path.name)]
        been.add(real)
        for path in sorted(shown):
            if path.is_dir():
                (folders.append if path.is_symlink() else folders.appendleft)(path)  # under its own name, if it can be
            elif path.is_file() or not path.exists():
                found.append(path)
    return sorted(found)


def _in_splits(names: list[str]) -> bool:
    """Whether the outermost folders are splits, train among them, with folders of classes inside."""
    nested = [Path(name).parts[0].lower() for name in names if len(Path(name).parts) > 2]
    outer = {SPLIT_NAMES.get(name) for name in nested}
    return None not in outer and "train" in outer and len(outer) > 1 and 2 * len(nested) > len(names)


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in LEFT_BY_SYSTEMS


def read(part: tuple[str, list[str], bool]) -> Iterator[Example | Rejected]:
    root, names, in_splits = part
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            yield Rejected(source=ascii(name), reason="the file's name is not UTF-8")
            continue
        folders = Path(name).parts[:-1]
        split = SPLIT_NAMES.get(folders[0].lower()) if in_splits and folders else None
        label = "/".join(folders[1:] if in_splits else folders) or None
        try:
            with open(Path(root, name), "rb") as file:
                payload, shape, bits = read_image(file)
            id = Path(name).as_posix()
            yield Example(id=id, label=label, payload=payload, shape=shape, bits=bits, split=split)
        except (ValueError, OSError) as error:
            yield Rejected(source=name, reason=str(error))
