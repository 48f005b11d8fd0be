"""Where a corpus comes from: SOURCES lists the kinds, each a module with `open_source` and `read`. csv, jsonl,
parquet and sql share `tables`; the other modules are what they have in common.

A module is imported when its source is opened, since most need TensorFlow.
"""

import difflib
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from pipeline.corpus.options import IngestOptions
from pipeline.corpus.sources.source import Example, Rejected, Source
from pipeline.errors import InputError

SOURCES = {  # what is given to --source, up to the colon the name of a module here; what it reads
    "digits": "scikit-learn's 1,797 digits",
    "images:DIR": "one folder a class, images of any kind; nested folders make its name",
    "csv:FILE,label=COLUMN": "text=, path= (of images) or vector=, label=, id=, group= COLUMN; sep=, quote=, encoding=",
    "jsonl:FILE,label=KEY": "the same keys of JSON objects, one a line",
    "parquet:FILE,label=COLUMN": "the same, or image= (encoded bytes)",
    "sql:FILE.sql,label=COLUMN": "what a SELECT finds in files, or in db=FILE of DuckDB or SQLite",
    "tfrecord:GLOB,label=FEATURE": "image=, text= or vector=, label=, id=, group= FEATURE; dtype=, shape=",
    "tfds:NAME,label=FEATURE": "prepared on disk by tensorflow-datasets; data_dir=, split=train+test",
    "arrays:FILE.npz": "images or vectors, labels, and if you like ids, groups",
    "fashion_mnist:DIR": "the four IDX files",
}
TABLES = ("csv", "jsonl", "parquet", "sql")


def open_sources(options: IngestOptions, scratch: Path | None = None) -> Source:
    """All sources as one, whose examples carry the split that their source is given for. scratch: see `open_source`.

    Raises:
      InputError: if their payloads differ in kind; see `open_source`.
    """
    held_out = ((None, options.source), ("validation", options.validation_source), ("eval", options.eval_source))
    texts = [(split, text) for split, texts in held_out for text in texts]
    opened = [open_source(text, scratch and scratch / f"source-{n}") for n, (_, text) in enumerate(texts)]
    if len(opened) == 1:
        return opened[0]
    kinds = {source.kind: text for source, (_, text) in zip(opened, texts, strict=True)}
    if len(kinds) > 1:
        raise InputError(f"sources of one corpus have one kind of payload; found {kinds}")
    readers = [(source.read, split) for source, (split, _) in zip(opened, texts, strict=True)]
    files = [source.files for source in opened]
    return Source(
        kind=opened[0].kind,
        files=None if None in files else [path for found in files for path in found or ()],
        parts=lambda: [(number, part) for number, source in enumerate(opened) for part in source.parts()],
        read=functools.partial(_read, readers=readers),
    )


def _read(part: tuple[int, Any], readers: list[tuple[Callable[[Any], Iterator[Example | Rejected]], str | None]]
          ) -> Iterator[Example | Rejected]:  # fmt: skip
    number, own = part
    read, split = readers[number]
    for found in read(own):
        if isinstance(found, Example):
            id = found.id if found.id_given else f"{number}/{found.id}"  # two sources may have the same places
            yield msgspec.structs.replace(found, id=id, split=split or found.split)
        else:
            yield found


def open_source(text: str, scratch: Path | None = None, *, labelled: bool = True) -> Source:
    """A source by the text that is given to `--source`.

    Args:
      scratch: a folder for copies that workers reach, while it is read; None for one that goes with the source.
      labelled: what has no label is rejected.
    Raises:
      InputError: if there is no such source, or what its argument names is not there or not as it must be.
    """
    name, _, argument = text.partition(":")
    names = [usage.partition(":")[0] for usage in SOURCES]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"no source is called {name!r}; {hint}There are {', '.join(SOURCES)}.")
    try:
        module = importlib.import_module(f"{__name__}.{'tables' if name in TABLES else name}")
    except ImportError as error:
        raise InputError(f"{name}: {error}. The extra {name} brings it: pip install .[{name}]") from None
    source: Source = module.open_source(*([name, argument, scratch] if name in TABLES else [argument]))
    if not labelled:
        return source
    if source.unlabelled:
        raise InputError(source.unlabelled)
    return replace(source, read=functools.partial(_labelled, read=source.read))


def _labelled(part: Any, read: Callable[[Any], Iterator[Example | Rejected]]) -> Iterator[Example | Rejected]:
    for found in read(part):
        if isinstance(found, Example) and found.label is None:
            yield found.rejected("it has no label")
        else:
            yield found
