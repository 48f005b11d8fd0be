"""Write embeddings with their ids and labels, for an index of vectors or whatever else takes them.

    python -m pipeline.embed --run_dir runs/digits --out embeddings.parquet
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.process import commands
from pipeline.process.options import ROUND, Common, File, parse


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    out: File
    """ends in .npz or .parquet"""
    split: Literal["train", "validation", "eval"] | None = None
    """which rows (all)"""
    round: Annotated[int | str | None, ROUND] = None
    """whose checkpoint (the newest); `best`: of `pipeline.rounds`"""


def main(argv: list[str]) -> int:
    options = parse(Options, "pipeline.embed", "Write embeddings with their ids and labels.", argv)
    from pipeline.embedding.export import export

    commands.show(export(options.run_dir, options.out, options.split, options.round), options.json)
    return 0


if __name__ == "__main__":
    commands.run(main)
