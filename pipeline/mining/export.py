"""Triplets with ids, texts and distances, as one file for others: a row a triplet."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.corpus import Corpus
from pipeline.errors import InputError
from pipeline.files import storage
from pipeline.files.layout import Run
from pipeline.mining.manifest import read_packs
from pipeline.packs.write import SCOPES
from pipeline.triplets.rule import KINDS

SIDES = ("anchor", "positive", "negative")


@dataclass(frozen=True, kw_only=True)
class Exported:
    triplets: int
    round: int
    to: str

    def __str__(self) -> str:
        return f"{self.triplets:,} triplets of round {self.round}\n  {self.to}"


def export_triplets(run_dir: Path | str, to: Path, number: int | None = None) -> Exported:
    """Writes the triplets of a mined round, the newest unless told, as .jsonl or .parquet.

    Columns: anchor, positive, negative: the texts, where the corpus holds texts; anchor_id, positive_id, negative_id;
    label, of anchor and positive, and negative_label; d_ap, d_an: squared distances; kind, scope.

    Raises:
      InputError: if nothing is mined, or for a file name with another ending.
    """
    if to.suffix not in WRITERS:
        raise InputError(f"--to {to}: expected a name that ends in {' or '.join(WRITERS)}")
    corpus = Corpus.open(run_dir)
    round = Run(corpus.run_dir).mined(number)
    done = 0

    def counted() -> Iterator[dict[str, list[Any]]]:
        nonlocal done
        for pack in read_packs(corpus.run_dir, round.number):
            done += len(pack["anchor"])
            yield _columns(pack)

    storage.write_atomically(to, lambda path: WRITERS[to.suffix](path, counted()))
    return Exported(triplets=done, round=round.number, to=str(to))


def _columns(pack: dict[str, Any]) -> dict[str, list[Any]]:
    """A pack's triplets, by column."""
    sides = {side: pack[side].tolist() for side in SIDES}
    columns: dict[str, list[Any]] = {}
    if "text" in pack:
        columns |= {side: [pack["text"][row].decode() for row in rows] for side, rows in sides.items()}
    columns |= {f"{side}_id": [pack["id"][row].decode() for row in rows] for side, rows in sides.items()}
    for name, side in (("label", "anchor"), ("negative_label", "negative")):
        columns[name] = [pack["label"][row].decode() for row in sides[side]]
    columns |= {name: pack[name].tolist() for name in ("d_ap", "d_an")}
    columns |= {name: [of[code] for code in pack[name]] for name, of in (("kind", KINDS), ("scope", SCOPES))}
    return columns


def _write_jsonl(path: Path, packs: Iterator[dict[str, list[Any]]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for columns in packs:
            for values in zip(*columns.values(), strict=True):
                file.write(json.dumps(dict(zip(columns, values, strict=True)), ensure_ascii=False) + "\n")


def _write_parquet(path: Path, packs: Iterator[dict[str, list[Any]]]) -> None:
    first = next(packs)
    schema = pa.schema(
        [(name, pa.float32() if name in ("d_ap", "d_an") else pa.string()) for name in first],
    )
    with pq.ParquetWriter(path, schema) as writer:
        for columns in itertools.chain([first], packs):
            writer.write_table(pa.table(columns, schema=schema))


WRITERS: dict[str, Callable[[Path, Iterator[dict[str, list[Any]]]], None]] = {
    ".jsonl": _write_jsonl, ".parquet": _write_parquet,
}  # fmt: skip
