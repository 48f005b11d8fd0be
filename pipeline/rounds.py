"""Mine and train in rounds, from where the run directory stands; keep the best checkpoint.

python -m pipeline.rounds --run_dir runs/digits --rounds 3
"""

from dataclasses import dataclass

from pipeline.errors import at_least_one
from pipeline.process import commands
from pipeline.process.options import Common, parse_with_beam


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    rounds: int = 3
    """how many in all; a larger number than before adds to them"""
    recipe: str = "best"
    """best, plain, or a .toml file with the settings of all steps"""
    patience: int | None = None
    """end after so many rounds without a better validation MAP@R"""

    def __post_init__(self) -> None:
        at_least_one(rounds=self.rounds, patience=self.patience)


def main(argv: list[str]) -> int:
    given, rest = parse_with_beam(Options, "pipeline.rounds", __doc__.splitlines()[0], argv)
    from pipeline.process.beam import beam_options
    from trainer.rounds import run_rounds

    options = beam_options(rest, given)
    done = run_rounds(given.run_dir, given.rounds, given.recipe, options, given.patience)
    commands.show(done, given.json)
    return 0


if __name__ == "__main__":
    commands.run(main)
