"""Sources to ingest, and what is in a corpus."""

import csv
import io
import json

import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from PIL import Image

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.ingest import ingest
from pipeline.corpus.manifest import SPLITS
from pipeline.corpus.options import IngestOptions
from pipeline.corpus.sources import open_source

NO_HOLD_OUT = {"eval_share": 0.0, "validation_share": 0.0}


def make(run_dir, source, shard_rows=4096, **options):
    """What `ingest` returns."""
    beam = PipelineOptions(["--runner=FnApiRunner"])
    return ingest(run_dir, IngestOptions(source=(str(source),), **options), beam, shard_rows=shard_rows)


def ingested(run_dir, source, **options):
    """The corpus of a source."""
    make(run_dir, source, **options)
    return Corpus.open(run_dir)


def examples(corpus, name):
    split = corpus.split(name)
    return list(split.examples(np.arange(split.rows)))


def everything(corpus):
    return [example for name in SPLITS for example in examples(corpus, name)]


def read_source(source):
    """What a source, or its name, gives, part by part, after the parts were JSON."""
    source = open_source(source) if isinstance(source, str) else source
    return [found for part in source.parts() for found in source.read(json.loads(json.dumps(part)))]


def png(value, size=(4, 4)):
    buffer = io.BytesIO()
    Image.fromarray(np.full(size, value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(root, classes=3, each=4, size=(6, 5)):
    rng = np.random.default_rng(0)
    for c in range(classes):
        folder = root / "alphabet" / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(folder / f"{i}.png")


def write_csv(path, rows, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
