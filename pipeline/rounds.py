"""Mine and train in rounds, from where the run directory stands; keep the best checkpoint.

python -m pipeline.rounds --run_dir runs/digits --rounds 3

One process mines and one trains, and both stay alive: their start is paid once. In turn, each round is mined with
the checkpoint that the last one trained. With --overlap they work side by side, as in ANCE
(https://arxiv.org/abs/2007.00808): the trainer takes the newest mined round there is, the miner the newest
checkpoint, and checkpoints that it does not get to are skipped. All that they tell each other is on disk. The miner's
process mines on half of the cores, and before it does, evaluates what was trained: --patience and a collapse end the
rounds as many rounds later as are trained while one set is mined.

The flags WARM_UP, MINE and TRAIN add stored rows to the triplet loss, and small packs that are spread over the corpus:
README measures what they bring. Flags that are given come after them, and win; --plain leaves all commands to their own
defaults, the plain triplet loss.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import threading
from pathlib import Path
from typing import Any

from pipeline import command, records, storage
from pipeline.records import InputError
from pipeline.worker import Worker

WARM_UP = "--margin 1.0"
MINE = "--packs spread --margin 1.0 --pack_rows 32 --fill 2 --pack_pick nearest"
TRAIN = "--stored_rows 10000 --learning_rate 0.003"
BEST_FORMAT = "triplet-miner-best/1"
COLLAPSED = 0.9  # norm of the mean embedding; 0 for embeddings that are spread out
YOUNG = 1  # rounds whose embeddings may still lie together


class StepFailed(Exception):
    """A step ended with this exit code, and has said why."""


def main(argv: list[str]) -> int:
    parser = command.Parser("pipeline.rounds", "--run_dir DIR [options]", __doc__.splitlines()[0])
    parser.add_argument("--run_dir", type=storage.location, required=True, help="with the corpus and the rounds")
    parser.add_argument("--rounds", type=int, default=3, help="how many to train, at most (3)")
    parser.add_argument("--patience", type=int, help="end after so many rounds without a better validation MAP@R")
    parser.add_argument("--overlap", action="store_true", help="mine and train side by side")
    parser.add_argument(
        "--warmup_steps", type=int, help="in-batch steps before round 0 (a pass over the train split; 0: none)"
    )
    parser.add_argument("--plain", action="store_true", help="the plain triplet loss: all commands' own defaults")
    parser.add_argument("--mine", default="", metavar="FLAGS", help="for pipeline.mine: --mine='--anchors 5000'")
    parser.add_argument("--train", default="", metavar="FLAGS", help="for trainer.train: --train='--epochs 2'")
    command.add_options(parser)
    arguments = parser.parse_args(argv)
    command.begin(arguments)
    for name, least in (("rounds", 1), ("patience", 1), ("warmup_steps", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name} must be at least {least}; found {value}")
    flags = {}
    for name, first in (("mine", MINE), ("train", f"{TRAIN} --decay_rounds {arguments.rounds}")):
        try:
            flags[name] = shlex.split(("" if arguments.plain else first + " ") + getattr(arguments, name))
        except ValueError as error:
            raise InputError(f"--{name} {getattr(arguments, name)!r}: {error}") from None
    if arguments.overlap:  # on all cores both would get in each other's way
        flags["mine"] = ["--threads", str(max(1, (os.cpu_count() or 1) // 2)), *flags["mine"]]
    corpus = records.open_corpus(arguments.run_dir)
    with command.hold(arguments.run_dir, "rounds") as lock:
        miner = Worker("pipeline.mine", lock, quiet=arguments.overlap)
        trainer = Worker("trainer.train", lock, quiet=arguments.overlap)
        with command.at_stop(miner.end), command.at_stop(trainer.end):
            try:
                return Rounds(arguments, flags, corpus, miner, trainer).run()
            except StepFailed as failed:
                return int(failed.args[0])
            finally:
                miner.end()
                trainer.end()


class Rounds:
    """A run of rounds. Its state is on disk; what is kept here can be read from there again."""

    def __init__(
        self, arguments: argparse.Namespace, flags: dict[str, list[str]], corpus: records.Corpus, miner: Worker,
        trainer: Worker,
    ):  # fmt: skip
        self.run_dir: Path = arguments.run_dir
        self.arguments, self.flags, self.corpus, self.miner, self.trainer = arguments, flags, corpus, miner, trainer
        self.validates = corpus.split("validation").rows > 0
        # Side by side: up to which round was begun, trained, looked at; whether the miner's thread has ended, and why.
        self.changed = threading.Condition()
        self.numbers = range(0)
        self.begun = self.trained = self.looked_at = 0
        self.ended = False
        self.failed: Exception | None = None

    def call(self, worker: Worker, module: str, *arguments: object) -> None:
        """Raises StepFailed if the command fails; it has said why on stderr."""
        code = worker.call(module, "--run_dir", self.run_dir, *arguments)
        if code:
            command.note(failed=module)
            raise StepFailed(code)

    def run(self) -> int:
        called = [["pipeline.mine", *self.flags["mine"]], ["trainer.train", *self.flags["train"]]]
        if records.newest_round(self.run_dir, records.checkpoint_path) is None:
            called.insert(0, ["trainer.train", *self.warm_up()])
            self.call(self.trainer, *called[0])
        mined = records.newest_round(self.run_dir, records.manifest_path)
        newest = records.newest_round(self.run_dir, records.checkpoint_path)
        assert newest is not None, "there is a first checkpoint"
        print("; ".join(map(shlex.join, called)))
        print(HEAD, flush=True)
        start = newest if mined is None or newest > mined or self.arguments.overlap else mined
        numbers = range(start, start + self.arguments.rounds)
        last = self.side_by_side(numbers) if self.arguments.overlap else self.in_turn(numbers)
        print(f"best: {self.run_dir / 'best' / 'model.keras'}, {self.keep_best()}")
        self.report(self.trainer, last)  # now the index knows which round's is best
        print(f"report: {self.run_dir / 'index.html'}")
        return 0

    def warm_up(self) -> list[str]:
        """The trainer's flags for round 0's checkpoint."""
        steps = self.arguments.warmup_steps
        if steps == 0:
            return ["--init"]
        flags = shlex.split("" if self.arguments.plain else WARM_UP)
        return ["--online", *flags, *(["--steps", str(steps)] if steps else [])]

    def in_turn(self, numbers: range) -> int:
        """Returns the last round that was trained."""
        for number in numbers:
            if not records.manifest_path(self.run_dir, number).exists():
                self.call(self.miner, "pipeline.mine", *self.flags["mine"])
            self.call(self.trainer, "trainer.train", *self.flags["train"])
            if self.look_at(self.trainer, number):
                break
        return number

    # ---- Side by side. ----

    def side_by_side(self, numbers: range) -> int:
        """Trains here while another thread mines, and looks at what was trained. Returns the last round looked at."""
        self.begun = self.trained = self.looked_at = numbers.start
        self.numbers = numbers
        while self.validates and self.was_not_looked_at(self.looked_at - 1):  # by an interrupted run
            self.looked_at -= 1
        # Triplets of an earlier run are not enough to begin with: runs of one round would train on them for ever.
        first = records.manifest_path(self.run_dir, numbers.start)
        threading.Thread(target=self.mine_and_look, daemon=True).start()
        while self.trained < numbers.stop:
            with self.changed:
                self.changed.wait_for(lambda: self.ended or first.exists())
                self.begun += 1
            if self.ended:
                break
            self.call(self.trainer, "trainer.train", "--newest", *self.flags["train"])
            with self.changed:
                self.trained += 1
                self.changed.notify_all()
        with self.changed:
            self.changed.wait_for(lambda: self.ended)
        if self.failed:
            raise self.failed
        return self.looked_at - 1

    def mine_and_look(self) -> None:
        """Looks at what was trained, then mines the newest checkpoint, until the last is looked at or one ends them."""
        try:
            while self.looked_at < self.numbers.stop:
                with self.changed:
                    self.changed.wait_for(lambda: self.is_to_mine() or self.looked_at < self.trained)
                while self.looked_at < self.trained:
                    self.looked_at += 1
                    if self.look_at(self.miner, self.looked_at - 1):
                        return
                if self.is_to_mine():
                    self.call(self.miner, "pipeline.mine", *self.flags["mine"])
                    with self.changed:
                        self.changed.notify_all()
        except Exception as error:  # raised again in the thread that trains
            self.failed = error
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def is_to_mine(self) -> bool:
        """Whether the newest checkpoint is not mined yet, and a round is still to begin."""
        newest = records.newest_round(self.run_dir, records.checkpoint_path) or 0
        return self.begun < self.numbers.stop and not records.manifest_path(self.run_dir, newest).exists()

    def was_not_looked_at(self, number: int) -> bool:
        trained = records.round_dir(self.run_dir, number) / "train" / "metrics.json"
        return number >= 0 and trained.exists() and self.validation(number + 1) is None

    # ---- What came of it. ----

    def look_at(self, worker: Worker, number: int) -> bool:
        """Evaluates what a round has trained, prints its line and writes its report. Returns whether it is the last."""
        if self.validates:
            which = ("--round", number + 1, "--split", "validation", "--retrieval_only")
            self.call(worker, "trainer.evaluate", *which)
        print(self.line(number), flush=True)
        self.report(worker, number)
        self.stop_if_collapsed(number)
        if self.validates and self.rounds_without_gain(number + 1) >= (self.arguments.patience or math.inf):
            print(f"no better validation MAP@R for {self.arguments.patience} rounds: done")
            return True
        return False

    def metrics(self, number: int) -> dict[str, Any]:
        return _read(records.round_dir(self.run_dir, number) / "train" / "metrics.json")

    def validation(self, number: int) -> dict[str, Any] | None:
        """How a round's checkpoint does on the validation split, if that was asked."""
        path = records.round_dir(self.run_dir, number) / "evaluation-validation.json"
        return _read(path) if path.exists() else None

    def line(self, number: int) -> str:
        """One round as one line of the table."""
        trained = self.metrics(number)
        manifest = _read(records.manifest_path(self.run_dir, trained["mined_round"]))
        stats = _read(records.round_dir(self.run_dir, trained["mined_round"]) / "stats.json")
        kinds = {kind: sum(scope[kind] for scope in manifest["counts"].values()) for kind in manifest["kinds"]}
        active = f"{trained['fresh_active_share']:.0%} to {trained['epochs'][-1]['active_share']:.0%}"
        found = self.validation(number + 1)
        quality = f"{found['recall_at_1']:.3f}  {found['map_at_r']:.3f}" if found else "    -      -"
        return (
            f"{number:>5}  {trained['mined_round']:>5}  {kinds['semi-hard']:>9,}  {kinds['hard']:>9,}  {active:>11}  "
            f"{trained['epochs'][-1]['loss']:.4f}  {quality}  {stats['mining_seconds']:>6.1f}  "
            f"{trained['seconds']:>8.1f}"
        )

    def report(self, worker: Worker, number: int) -> None:
        """Writes the page of the round that was mined for this one, and the index. Without them the rounds go on."""
        mined = self.metrics(number)["mined_round"]
        code = worker.call("pipeline.report", "--run_dir", self.run_dir, "--round", mined)
        if code in (1, 4):  # it has said why
            command.log.warning("round %d goes without a report", number)
        elif code:
            raise StepFailed(code)

    def history(self, last: int) -> dict[int, float]:
        """Validation MAP@R by checkpoint, up to round `last`'s."""
        found = {number: self.validation(number) for number in range(last + 1)}
        return {number: value["map_at_r"] for number, value in found.items() if value}

    def rounds_without_gain(self, last: int) -> int:
        history = self.history(last)
        return last - max(history, key=lambda number: (history[number], -number))

    def keep_best(self) -> str:
        """Copies the checkpoint with the highest validation MAP@R to best/. Returns what to say of it."""
        newest = records.newest_round(self.run_dir, records.checkpoint_path) or 0
        history = self.history(newest)
        number = max(history, key=lambda n: (history[n], -n)) if history else newest
        source = records.checkpoint_path(self.run_dir, number)
        target = self.run_dir / "best" / "model.keras"
        storage.write_atomically(target, lambda temporary: shutil.copyfile(storage.local_copy(source), temporary))
        told = {"format": BEST_FORMAT, "round": number, "validation_map_at_r": history.get(number)}
        records.write_json(target.with_name("best.json"), told)
        command.note(best=told)
        if not history:
            return f"round {number}'s, the newest: there is no validation split to choose by"
        return f"round {number}'s, validation MAP@R {history[number]:.3f}"

    def stop_if_collapsed(self, number: int) -> None:
        """Raises InputError when all embeddings lie together and the loss sits at the margin."""
        trained, found = self.metrics(number), self.validation(number + 1)
        if found is None or number < YOUNG:
            return
        norm = math.sqrt(max(0.0, 1 - found["mean_distance"] / 2))
        loss = trained["epochs"][-1]["loss"]
        if norm > COLLAPSED and loss > 0.9 * trained["margin"]:
            raise InputError(
                f"round {number}: the embedding has collapsed: its mean has norm {norm:.2f} and the loss {loss:.3f} "
                f"sits at the margin {trained['margin']}. The best checkpoint is {self.keep_best()}. Lower "
                f"--learning_rate, leave out hard negatives (--mine='--negatives semi-hard'), or warm up longer "
                f"(--warmup_steps)."
            )


HEAD = "round  mined  semi-hard       hard       active    loss    R@1  MAP@R  mining  training  (validation; seconds)"


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


if __name__ == "__main__":
    command.run(main)
