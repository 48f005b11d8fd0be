"""Write round 0's checkpoint: a network with seeded weights, or your own.

python -m trainer.init --run_dir runs/digits
"""

from dataclasses import dataclass

from pipeline.process import commands, lock
from pipeline.process.options import Common, Inline, parse
from trainer.options import InitOptions


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    network: Inline[InitOptions] = InitOptions()


def main(argv: list[str]) -> int:
    given = parse(Options, "trainer.init", __doc__.splitlines()[0], argv)
    from trainer.first import write_first

    with lock.hold(given.run_dir, lock.TRAINER):
        result = write_first(given.run_dir, given.network)
    commands.show(result, given.json)
    return 0


if __name__ == "__main__":
    commands.run(main)
