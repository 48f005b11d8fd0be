"""Run directories that the benchmarks work in, made in this process."""

from pathlib import Path
from typing import Any

import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.corpus.ingest import Ingested, ingest
from pipeline.corpus.options import IngestOptions

IN_PROCESS = PipelineOptions(["--runner=FnApiRunner"])


def ingest_source(run_dir: Path, source: str, **options: Any) -> Ingested:
    """options: see IngestOptions."""
    return ingest(run_dir, IngestOptions(source=(source,), **options), IN_PROCESS)


def ingest_arrays(run_dir: Path, **arrays: Any) -> Ingested:
    """Rows for the source `arrays`, all in the train split."""
    path = run_dir.with_suffix(".npz")
    np.savez(path, **arrays)
    return ingest_source(run_dir, f"arrays:{path}", validation_share=0.0, eval_share=0.0)
