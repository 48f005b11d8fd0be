"""Mine a round: embed the corpus with its checkpoint, select triplets exactly, write them as TFRecords.

    python -m pipeline.mine --run_dir runs/digits
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import at_least_one
from pipeline.mining.options import MiningOptions
from pipeline.packs.packs import PackOptions
from pipeline.process import commands, lock
from pipeline.process.options import Common, Inline, parse_with_beam


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    mining: Inline[MiningOptions] = MiningOptions()
    packing: Inline[PackOptions] = PackOptions()
    threads: int | None = None
    """of a worker's scan (as many as it has cores)"""
    scan: Literal["auto", "cpu", "gpu"] = "auto"
    """what compares the rows; auto: a GPU if TensorFlow sees one"""

    def __post_init__(self) -> None:
        at_least_one(threads=self.threads)


def main(argv: list[str]) -> int:
    options, rest = parse_with_beam(Options, "pipeline.mine", "Mine the newest checkpoint's round.", argv)
    from pipeline.mining.job import mine
    from pipeline.process.beam import beam_options
    from pipeline.reporting.advice import advised

    given = beam_options(rest, options)
    with lock.hold(options.run_dir, lock.MINER):
        mined = mine(options.run_dir, options.mining, options.packing, given, options.threads, scan=options.scan)
    commands.show(advised(mined), options.json)
    return 0


if __name__ == "__main__":
    commands.run(main)
