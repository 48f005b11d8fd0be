"""What ingest costs, beside DuckDB reading the same rows and TensorFlow writing them once.

    make bench-ingest
"""

import argparse
import csv
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import duckdb
import tensorflow as tf

from benchmarks.runs import ingest_source
from benchmarks.table import Row, finish, paired, show

BOUND = 3.0
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


def write_rows(path: Path, rows: int) -> None:
    """Texts of a dozen words, a tenth of them in quotes, in a thousand classes."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "text", "label"])
        for n in range(rows):
            words = " ".join(f"word{n * prime % 4999}" for prime in PRIMES)
            table.writerow([n, words if n % 10 else f"{words}, and more", f"class {n % 1000}"])


def read_and_write(source: Path, target: Path) -> None:
    """DuckDB on one thread reads, TensorFlow writes records."""
    with duckdb.connect(config={"threads": 1}) as connection, tf.io.TFRecordWriter(str(target)) as writer:
        rows = connection.execute(f"SELECT * FROM read_csv('{source}', all_varchar = true)")
        while batch := rows.fetchmany(4096):
            for row in batch:
                feature = {
                    name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
                    for name, value in zip(("id", "text", "label"), row, strict=True)
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--repeat", type=int, default=3)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source, run_dir = Path(scratch, "rows.csv"), Path(scratch, "run")
        write_rows(source, given.rows)

        def ingest() -> None:
            shutil.rmtree(run_dir, ignore_errors=True)
            assert sum(ingest_source(run_dir, f"csv:{source}").rows.values()) == given.rows

        once = Path(scratch, "rows.tfrecord")
        ratio, ours, theirs = paired(ingest, lambda: read_and_write(source, once), given.repeat)
    rows = [
        Row(what=f"ingest of {given.rows:,} rows of CSV over reading and writing them once", value=ratio, bound=BOUND),
        Row(what="  seconds of ingest", value=ours),
        Row(what="  seconds of DuckDB reading and TensorFlow writing", value=theirs),
        Row(what="  GiB of memory at most", value=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20),
    ]
    for row in rows:
        show(row)
    return finish("ingest", rows, versions={"duckdb": duckdb.__version__})


if __name__ == "__main__":
    sys.exit(main())
