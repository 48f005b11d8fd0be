"""What a source is: a list of parts, and a way to stream one part's examples."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.files.manifests import sha256_of_json

PART_ROWS = 4096
SPLIT_NAMES = {  # as people call them, and as we do
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "eval", "testing": "eval", "eval": "eval", "evaluation": "eval",
}  # fmt: skip
ROLES = ("query", "gallery")


class Example(msgspec.Struct, frozen=True, kw_only=True):  # made a million times: a dataclass takes ten times as long
    """One example.

    id: the user's own if `id_given`, or made of its place in its source. label: None where it has none.
    payload: encoded image bytes, UTF-8 text, or a float32 vector. shape: (height, width, channels), () or (dim,).
    split: the one that its source puts it into, as SPLIT_NAMES has it. role: `query` or `gallery`, where evaluation
    ranks the rows of one for those of the other. side: `anchor`, `positive` or `negative` of a pair; the id up to its
    last slash is the pair's name.
    bits: of an image of 16 bits a pixel, how many the brightest uses. place: in its source, if the id does not say it.
    """

    id: str
    label: str | None
    payload: bytes | np.ndarray
    shape: tuple[int, ...]
    group: str | None = None
    split: str | None = None
    role: str | None = None
    side: str | None = None
    bits: int | None = None
    id_given: bool = False
    place: str = ""

    def rejected(self, reason: str) -> "Rejected":
        return Rejected(source=self.place or self.id, reason=reason)


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """Something in a source that is no example, and why."""

    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source that is there.

    kind: of the payload, image, text or vector. files: whose sizes and times show that nothing changed; None where
    they cannot. parts: lists the parts, each a value that JSON can hold and that names files by absolute paths, for a
    worker reads it on its own. read: a module's function, one part's examples; no more than that part is held.
    unlabelled: where it has no labels at all, what to tell those who need them.
    """

    kind: str
    files: list[Path] | None
    parts: Callable[[], list[Any]]
    read: Callable[[Any], Iterator[Example | Rejected]]
    unlabelled: str = ""

    def stamp(self) -> str | None:
        """A digest of the names, sizes and times of its files; None where they do not tell of a change."""
        if self.files is None:
            return None
        status = [(ascii(str(path)), path.stat()) for path in self.files]  # a name may be no UTF-8
        return sha256_of_json([[name, of.st_size, of.st_mtime_ns] for name, of in status])


def bounded(examples: Iterable[Example | Rejected], max_text: int) -> Iterator[Example | Rejected]:
    """The same, but texts of more characters than that are rejected."""
    for found in examples:
        if isinstance(found, Example) and found.shape == () and len(found.payload) > max_text:
            length = len(bytes(found.payload).decode())
            if length > max_text:
                reason = f"the text has {length:,} characters, --max_text is {max_text:,}"
                found = Rejected(source=found.id, reason=reason)
        yield found


def payload_sha256(payload: bytes | np.ndarray) -> bytes:
    return hashlib.sha256(payload if isinstance(payload, bytes) else payload.tobytes()).digest()
