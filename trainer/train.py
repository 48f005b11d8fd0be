"""Train on the newest mined round, write the next checkpoint.

python -m trainer.train --run_dir runs/digits
"""

from dataclasses import dataclass

from pipeline.process import commands
from pipeline.process.options import Common, Inline, parse
from trainer.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    training: Inline[TrainOptions] = TrainOptions()


def main(argv: list[str]) -> int:
    given = parse(Options, "trainer.train", __doc__.splitlines()[0], argv)
    from trainer.loop import train_newest

    commands.show(train_newest(given.run_dir, given.training), given.json)
    return 0


if __name__ == "__main__":
    commands.run(main)
