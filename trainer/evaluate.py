"""How good checkpoints are on held-out rows: retrieval, verification, a linear probe, clusters.

python -m trainer.evaluate --run_dir runs/digits
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.process import commands
from pipeline.process.options import Common, RoundName, parse


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    round: tuple[RoundName, ...] = ()
    """whose checkpoints (the best of `pipeline.rounds`; where there is none, the newest)"""
    split: Literal["train", "validation", "eval"] = "eval"
    """which rows"""
    retrieval_only: bool = False
    """no verification, no linear probe"""
    nmi: bool = False
    """also normalised mutual information with k-means clusters"""


def main(argv: list[str]) -> int:
    options = parse(Options, "trainer.evaluate", "How good checkpoints are on held-out rows.", argv)
    from trainer.measures.evaluation import evaluate_rounds

    which = {"retrieval_only": options.retrieval_only, "nmi": options.nmi}
    found = evaluate_rounds(options.run_dir, options.round, options.split, **which)
    commands.show(found, options.json)
    return 0


if __name__ == "__main__":
    commands.run(main)
