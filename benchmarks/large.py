"""Ingest of many rows: what it costs beside reading and writing them once, and how much memory it takes.

    make bench-large
"""

import argparse
import csv
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import tensorflow as tf

from benchmarks.runs import ingest_source
from benchmarks.table import Row, finish, paired, show

ROWS, MANY_ROWS, MANY_CLASSES = 1_000_000, 10_000_000, 1_000_000
BOUND = 3.0  # times reading and writing once
MOST = 2.0  # GB
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
PEAK = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", *sys.argv[1:]], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6)
sys.exit(done.returncode)
"""


def write_csv(path: Path, rows: int) -> None:
    """Texts of a dozen words, a tenth of them in quotes, in a thousand classes."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "text", "label"])
        for n in range(rows):
            words = " ".join(f"word{n * prime % 4999}" for prime in PRIMES)
            table.writerow([n, words if n % 10 else f"{words}, and more", f"class {n % 1000}"])


def write_vectors(path: Path, rows: int, dim: int, classes: int) -> None:
    """float32, each row in a class that is drawn."""
    rng = np.random.default_rng(0)
    np.savez(path, vectors=rng.standard_normal((rows, dim), np.float32), labels=rng.integers(0, classes, rows))


def _of_csv(path: Path) -> Iterator[dict[str, Any]]:
    """DuckDB on one thread."""
    with duckdb.connect(config={"threads": 1}) as connection:
        rows = connection.execute(f"SELECT * FROM read_csv('{path}', all_varchar = true)")
        while batch := rows.fetchmany(4096):
            for row in batch:
                yield {name: value.encode() for name, value in zip(("id", "text", "label"), row, strict=True)}


def _of_vectors(path: Path) -> Iterator[dict[str, Any]]:
    with np.load(path) as arrays:
        for n, (vector, label) in enumerate(zip(arrays["vectors"], arrays["labels"], strict=True)):
            yield {"id": b"%010d" % n, "label": str(label).encode(), "vector": vector.tolist()}


def write_once(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """TensorFlow writes them."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            feature = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) if isinstance(value, bytes)
                else tf.train.Feature(float_list=tf.train.FloatList(value=value))
                for name, value in row.items()
            }  # fmt: skip
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def over_once(kind: str, rows: int = ROWS, repeat: int = 3) -> list[Row]:
    """Ingest over reading and writing once. kind: `csv`; or `vectors`, of 64."""
    with tempfile.TemporaryDirectory() as scratch:
        run_dir, once = Path(scratch, "run"), Path(scratch, "rows.tfrecord")
        source = Path(scratch, "rows.csv" if kind == "csv" else "rows.npz")
        if kind == "csv":
            write_csv(source, rows)
        else:
            write_vectors(source, rows, 64, 1000)
        name, read = (f"csv:{source}", _of_csv) if kind == "csv" else (f"arrays:{source}", _of_vectors)

        def ingest() -> None:
            shutil.rmtree(run_dir, ignore_errors=True)
            assert sum(ingest_source(run_dir, name).rows.values()) == rows

        ratio, ours, theirs = paired(ingest, lambda: write_once(once, read(source)), repeat)
    what = "rows of CSV" if kind == "csv" else "x 64 vectors"
    return [
        Row(what=f"ingest of {rows:,} {what} over reading and writing them once", value=ratio, bound=BOUND),
        Row(what="  seconds of ingest", value=ours),
        Row(what="  seconds of reading, and of TensorFlow writing", value=theirs),
        Row(what="  GB of memory at most so far", value=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6),
    ]


def memory(rows: int = MANY_ROWS, classes: int = MANY_CLASSES) -> list[Row]:
    """How much the process that starts ingest takes, which in process is the worker too."""
    with tempfile.TemporaryDirectory() as scratch:
        write_vectors(Path(scratch, "rows.npz"), rows, 8, classes)
        call = ["pipeline.ingest", "--run_dir", f"{scratch}/run", "--source", f"arrays:{scratch}/rows.npz"]
        done = subprocess.run([sys.executable, "-c", PEAK, *call], stdout=subprocess.PIPE, text=True, check=True)
    what = f"GB of ingest at most, {rows:,} rows in {classes:,} classes"
    return [Row(what=what, value=float(done.stdout), bound=MOST, note="launcher and worker are one process")]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--repeat", type=int, default=3)
    given = arguments.parse_args()
    rows = []
    for measure in (memory, lambda: over_once("vectors", repeat=given.repeat),
                    lambda: over_once("csv", repeat=given.repeat)):  # fmt: skip
        for row in measure():
            show(row)
            rows.append(row)
    return finish("large", rows, versions={"duckdb": duckdb.__version__})


if __name__ == "__main__":
    sys.exit(main())
