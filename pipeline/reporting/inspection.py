"""What TFRecord files hold, and whether it is what their manifests say."""

import functools
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import SPLITS
from pipeline.errors import InputError
from pipeline.files import manifests, storage, tfrecords
from pipeline.files.manifests import Shard
from pipeline.mining.manifest import TripletsManifest


def table(path: Path, limit: int) -> str:
    """A file's first records: each feature's type, number of values and first values. All checksums are looked at."""
    if not path.is_file():
        raise InputError(f"{path} is not a file. Name a .tfrecord file.")
    rows, count = Table("record", "feature", "type", "values", "first", title=str(path), title_justify="left"), 0
    for record in tfrecords.read_records(path):
        if count < limit:
            try:
                features = tfrecords.parse_example(record)
            except DecodeError as error:
                raise InputError(f"{path}: record {count} is not a tf.train.Example: {error}") from None
            for name in sorted(features):
                value = features[name]
                kind = "bytes" if isinstance(value, list) else str(value.dtype)
                rows.add_row(str(count), name, kind, str(len(value)), Text(_shown(value)))
            rows.add_section()
        count += 1
    console = Console(file=StringIO(), record=True)
    console.print(rows)
    return f"{console.export_text()}{count} records, every checksum right; shown: {min(limit, count)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        text = ", ".join(_as_text(item) for item in value[:4])
    else:
        text = ", ".join(f"{item:.4g}" if value.dtype == np.float32 else str(item) for item in value[:8])
    return text + (", ..." if len(value) > (4 if isinstance(value, list) else 8) else "")


def _as_text(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return f"<{len(value)} bytes>"
    return text if len(text) <= 40 and text.isprintable() else f"<{len(value)} bytes>"


def problems(directory: Path) -> Iterator[str]:
    """Where shards of a run directory are not what their manifests list: checksums, CRCs, counts, extra files. And
    checkpoints and embeddings that are not what was written.

    directory: may be a part of one too: its corpus, its rounds, a round, triplets.
    """
    directory = directory.absolute()
    # Not all that is below: a run directory may lie in a project with a corpus.json of its own.
    below = ("corpus/corpus.json", "triplets/triplets.json", "*/triplets/triplets.json", "*/*/triplets/triplets.json")
    own = {"corpus": "corpus.json", "triplets": "triplets.json"}.get(directory.name)
    found = [path for pattern in (own, *below) if pattern for path in sorted(directory.glob(pattern), key=str)]
    if not found:
        raise InputError(f"no corpus.json or triplets.json in {directory}. Name a run directory, or a part of one.")
    for path in found:
        if path.name == "corpus.json":
            corpus = Corpus.open(path.parent.parent)
            splits = [corpus.split(name) for name in SPLITS]
            lists: list[Callable[[], object]] = [corpus.given_triplets]
            lists += [functools.partial(getattr, split, name) for split in splits for name in ("labels", "first_rows")]
            for open_list in lists:
                try:
                    open_list()
                except InputError as error:
                    yield str(error)
            shards: list[Shard] = [shard for split in splits for shard in split.shards]
            checks = [lambda s=s, n=n: s.check_shard(n) for s in splits for n in range(len(s.shards))]
        else:
            shards = list(manifests.read(path, TripletsManifest).shards)
            checks = [lambda p=path, shard=shard: manifests.check_shard(p, shard) for shard in shards]
        for shard, check in zip(shards, checks, strict=True):
            try:
                check()
                records = sum(1 for _ in tfrecords.read_records(path.parent / shard.file))
                if records != shard.records:
                    yield f"{path.parent / shard.file} has {records} records, {path} {shard.records}."
            except InputError as error:
                yield str(error)
        for extra in sorted(set(storage.names(path.parent)) - {shard.file for shard in shards}):
            if extra.endswith(".tfrecord") and not extra.startswith("."):
                yield f"{path.parent / extra} is not listed in {path}. Readers leave it alone; remove it."
    yield from _changed(directory)


def _changed(directory: Path) -> Iterator[str]:
    """Checkpoints and embeddings of which the checksum beside them tells that they were changed."""
    files = ("best/*.keras", "checkpoint/*.keras", "embeddings/*/*.np[yz]")
    patterns = [above + file for file in files for above in ("", "*/", "*/*/")]  # of a round, of rounds, of a run
    for path in [path for pattern in patterns for path in sorted(directory.glob(pattern), key=str)]:
        if storage.is_as_written(path) is False:
            beside = f"{path.with_suffix('.sha256').name} beside it is of another"
            yield f"{path} was changed since it was written: {beside}. Restore it, or make {path.parent} again."
