"""Whether a source still holds what a corpus was made from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus.corpus import SPLITS, Corpus
from pipeline.corpus.sources.source import payload_sha256
from pipeline.files import tfrecords
from pipeline.files.manifests import sha256_of_json


def source_stamp(files: list[Path] | None) -> str | None:
    """A digest of the names, sizes and times of a source's files; None where they do not tell of a change."""
    if files is None:
        return None
    status = [(ascii(str(path)), path.stat()) for path in files]  # a name may be no UTF-8
    return sha256_of_json([[name, of.st_size, of.st_mtime_ns] for name, of in status])


def find_changes(corpus: Corpus, keys: pa.Table) -> dict[str, list[str]]:
    """The ids of examples that `came`, `went` or `changed`. keys: KEYS of the source as it is now."""
    columns = [keys[name].to_pylist() for name in ("label", "group", "sha256")]
    now = dict(zip(keys["id"].to_pylist(), zip(*columns, strict=True), strict=True))
    went, changed = [], []
    for id, value in _corpus_keys(corpus):
        if id not in now:
            went.append(id.decode())
        elif now.pop(id) != value:
            changed.append(id.decode())
    return {"came": [id.decode() for id in now], "went": went, "changed": changed}


def in_short(changes: dict[str, list[str]]) -> str:
    """`2 came (i98, i99); 1 went (i29)`."""
    return "; ".join(
        f"{len(ids):,} {what} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
        for what, ids in changes.items()
        if ids
    )


def _corpus_keys(corpus: Corpus) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
    """(id, (label, group, SHA-256 of the payload)) of every example of a corpus."""
    for split in map(corpus.split, SPLITS):
        for number in range(len(split.shards)):
            for record in tfrecords.read_records(split.shard_path(number)):
                example = tfrecords.parse_example(record)
                payload = example[corpus.feature.kind]
                digest = payload_sha256(payload if isinstance(payload, np.ndarray) else payload[0])
                yield example["id"][0], (example["label"][0], example.get("group", [None])[0], digest)
