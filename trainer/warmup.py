"""Train round 0's checkpoint in-batch before anything is mined.

python -m trainer.warmup --run_dir runs/digits
"""

from dataclasses import dataclass

from pipeline.process import commands, lock
from pipeline.process.options import Common, Inline, parse
from trainer.options import WarmupOptions


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    warmup: Inline[WarmupOptions] = WarmupOptions()


def main(argv: list[str]) -> int:
    given = parse(Options, "trainer.warmup", __doc__.splitlines()[0], argv)
    from trainer.warming import warm_up

    with lock.hold(given.run_dir, lock.MINER, lock.TRAINER):
        result = warm_up(given.run_dir, given.warmup)
    commands.show(result, given.json)
    return 0


if __name__ == "__main__":
    commands.run(main)
