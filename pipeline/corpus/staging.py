"""What lies in a folder beside the corpus while that is made, below a name of that run of the command alone.

parts.jsonl, parts.npy        the source's parts, and where each one's line begins
part-N.tfrecord               the examples of a part
part-N.parquet                their keys, and what was rejected, with reasons
ordered.json                  what the corpus holds, but for its shards, whose number is there
SPLIT-N.npy                   the keys of a shard's rows: too large to travel inside a graph
SPLIT.labels.jsonl, SPLIT.first_rows.npy, given.npy
                              as in the corpus
shards.json                   the shards that are written
rejected.jsonl                all that was rejected
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import storage


@dataclass(frozen=True)
class Staging:
    path: Path

    def save_parts(self, parts: list[Any]) -> None:
        """In the graph that goes to an engine, the names of all files would not fit."""
        lines = [json.dumps(part).encode() + b"\n" for part in parts]
        storage.write_atomically(self.path / "parts.jsonl", lambda path: path.write_bytes(b"".join(lines)))
        storage.save_array(self.path / "parts.npy", np.cumsum([0, *map(len, lines)]))

    def read_part(self, number: int) -> Any:
        start, stop = storage.open_array(self.path / "parts.npy")[number : number + 2].tolist()
        with (self.path / "parts.jsonl").open("rb") as file:
            file.seek(start)
            return json.loads(file.read(stop - start))

    def part(self, number: int, suffix: str) -> Path:
        return self.path / f"part-{number:05d}{suffix}"

    def shard_keys(self, split: str, number: int) -> Path:
        return self.path / f"{split}-{number:05d}.npy"

    @property
    def ordered(self) -> Path:
        return self.path / "ordered.json"

    @property
    def shards(self) -> Path:
        return self.path / "shards.json"

    @property
    def rejected(self) -> Path:
        return self.path / "rejected.jsonl"


def write_table(path: Path, table: pa.Table) -> None:
    storage.write_atomically(path, functools.partial(pq.write_table, table))
