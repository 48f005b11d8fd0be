"""Pages to look at: report.html of each mined round, suspected-labels.tsv beside it, index.html over rounds.

    python -m pipeline.report --run_dir runs/digits
"""

from dataclasses import dataclass

from pipeline.errors import at_least_one
from pipeline.process import commands
from pipeline.process.options import Common, parse


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    round: tuple[int, ...] = ()
    """whose pages (all that are mined)"""
    packs: int | None = None
    """packs that a page reads at most (what keeps it quick)"""

    def __post_init__(self) -> None:
        at_least_one(packs=self.packs)


def main(argv: list[str]) -> int:
    options = parse(Options, "pipeline.report", "Pages to look at.", argv)
    from pipeline.reporting.pages import report

    commands.show(report(options.run_dir, options.round, options.packs), options.json)
    return 0


if __name__ == "__main__":
    commands.run(main)
