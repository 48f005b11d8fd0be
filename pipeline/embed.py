"""Write embeddings with their ids and labels, for an index of vectors or whatever else takes them.

    python -m pipeline.embed --run_dir runs/digits --out embeddings.parquet
    python -m pipeline.embed --run_dir runs/digits --source images:new --out new.parquet
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.corpus.options import MAX_TEXT
from pipeline.errors import WrongOption
from pipeline.process import commands
from pipeline.process.options import ROUND, File, Place, parse

WHICH = (
    "embed takes the rows of --run_dir, or those of one --split, or those of --source; and for --source the network of "
    "--run_dir, or of one --round, or --checkpoint FILE.keras"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    run_dir: Place | None = None
    """with the corpus and the rounds"""
    out: File
    """ends in .npz or .parquet"""
    split: Literal["train", "validation", "eval"] | None = None
    """which rows (all)"""
    round: Annotated[int | str | None, ROUND] = None
    """whose checkpoint (the newest); `best`: of `pipeline.rounds`"""
    source: str | None = None
    """NAME:ARGUMENT as `pipeline.ingest` takes it: its rows instead, with labels or without"""
    checkpoint: File | None = None
    """a network, where there is no run directory"""
    max_text: int = MAX_TEXT
    """characters of a source's text; a longer one is rejected"""
    json: bool = False
    """print the result as JSON"""


def main(argv: list[str]) -> int:
    options = parse(Options, "pipeline.embed", "Write embeddings with their ids and labels.", argv)
    from pipeline.corpus.corpus import Corpus
    from pipeline.embedding.export import checkpoint_of, export, export_source

    run_dir, checkpoint, source, number = options.run_dir, options.checkpoint, options.source, options.round
    if source is None and run_dir is not None and checkpoint is None:
        done = export(run_dir, options.out, options.split, number)
    elif source is not None and options.split is None and run_dir is not None and checkpoint is None:
        bits = Corpus.open(run_dir).manifest.bits
        done = export_source(source, checkpoint_of(run_dir, number), options.out, bits, options.max_text)
    elif source is not None and options.split is None and checkpoint is not None and (run_dir, number) == (None, None):
        done = export_source(source, checkpoint, options.out, max_text=options.max_text)
    else:
        raise WrongOption(WHICH)
    commands.show(done, options.json)
    return 0


if __name__ == "__main__":
    commands.run(main)
