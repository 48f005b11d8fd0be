"""Mine and train in turn, from where the run directory stands, each in a process of its own.

python -m pipeline.rounds --run_dir runs/digits --rounds 3
"""

import argparse
import shlex
from pathlib import Path

from pipeline import command, records
from pipeline.records import InputError


class StepFailed(Exception):
    """A step ended with this exit code, and has said why."""


def run_step(module: str, run_dir: Path, *arguments: str) -> None:
    """Runs one of our commands. Its own words are its error message; this one stops with its exit code.

    Raises:
      StepFailed
    """
    code = command.call(module, "--run_dir", run_dir, *arguments)
    if code:
        command.note(failed=module)
        raise StepFailed(code)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.rounds", description=__doc__.splitlines()[0])
    parser.add_argument("--run_dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3, help="how many to mine and train (3)")
    parser.add_argument(
        "--warmup_steps", type=int, help="in-batch steps before round 0 (one pass over the train split; 0: none)"
    )
    parser.add_argument("--mine", default="", metavar="FLAGS", help="for pipeline.mine: --mine='--pick nearest'")
    parser.add_argument("--train", default="", metavar="FLAGS", help="for trainer.train: --train='--epochs 2'")
    command.add_options(parser)
    arguments = parser.parse_args(argv)
    command.begin(arguments)
    try:
        return mine_and_train(arguments)
    except StepFailed as failed:
        return int(failed.args[0])


def mine_and_train(arguments: argparse.Namespace) -> int:
    run_dir = arguments.run_dir
    for name, least in (("rounds", 1), ("warmup_steps", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name} must be at least {least}; found {value}")
    flags = {}
    for name in ("mine", "train"):
        try:
            flags[name] = shlex.split(getattr(arguments, name))
        except ValueError as error:
            raise InputError(f"--{name} {getattr(arguments, name)!r}: {error}") from None
    corpus = records.open_corpus(run_dir)
    if records.newest_round(run_dir, records.checkpoint_path) is None and arguments.warmup_steps != 0:
        steps = [] if arguments.warmup_steps is None else ["--steps", str(arguments.warmup_steps)]
        run_step("trainer.train", run_dir, "--online", *steps)
    mined = records.newest_round(run_dir, records.manifest_path)
    first = 0 if mined is None else mined
    if records.checkpoint_path(run_dir, first + 1).exists():
        first += 1
    for number in range(first, first + arguments.rounds):
        if not records.manifest_path(run_dir, number).exists():
            run_step("pipeline.mine", run_dir, *flags["mine"])
        run_step("trainer.train", run_dir, *flags["train"])
    if corpus.split("eval").rows:
        numbers = [str(number) for number in range(first, first + arguments.rounds + 1)]
        run_step("trainer.evaluate", run_dir, "--round", *numbers)
    return 0


if __name__ == "__main__":
    command.run(main)
