"""Mine and train in turn, by a plan on disk; keep the best checkpoint.

What the plan says is done once: rounds that were stopped go on where they were, and end at the weights that they would
have had. Their number is a total: more of them are asked for by a larger one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.corpus.corpus import Corpus
from pipeline.embedding.network import copy_checkpoint
from pipeline.errors import InputError, at_least_one
from pipeline.files import manifests, storage
from pipeline.files.layout import Round, Run
from pipeline.mining.job import mine
from pipeline.mining.manifest import TripletsManifest
from pipeline.mining.mined import collapse
from pipeline.process import lock
from pipeline.process.beam import in_process
from pipeline.process.commands import log
from pipeline.reporting import pages
from pipeline.reporting.facts import facts_of
from pipeline.reporting.results import Best, Evaluation, Measures, Metrics, worse_than_untrained
from trainer.events import event_log
from trainer.first import write_first
from trainer.loop import Schedule, train_held
from trainer.measures.baselines import measure_baselines
from trainer.measures.evaluation import evaluate_rounds, kept_checkpoint
from trainer.measures.retrieval import has_queries
from trainer.options import InitOptions
from trainer.recipe import Recipe, read_recipe
from trainer.warming import warm_up

HEAD = "round  semi-hard       hard  active    loss    R@1  MAP@R  mining  training  (validation; seconds)"


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Rounds first to last - 1, over which the learning rate falls. patience: rounds without gain that end it."""

    first: int
    last: int
    recipe: Recipe
    patience: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """plan.json."""

    FORMAT: ClassVar[str] = "triplet-miner-plan/1"
    stretches: list[Stretch]


@dataclass(frozen=True, kw_only=True)
class RoundLine:
    """One round of the table. Quality is that of the checkpoint that it trained, on the validation split.

    mining_seconds: None where mining was stopped after its manifest was there, and before it told its time.
    """

    round: int
    triplets: dict[str, int]
    active: float
    loss: float
    recall_at_1: float | None
    map_at_r: float | None
    mining_seconds: float | None
    training_seconds: float

    def __str__(self) -> str:
        quality = "    -      -" if self.map_at_r is None else f"{self.recall_at_1:.3f}  {self.map_at_r:.3f}"
        mining = "-" if self.mining_seconds is None else f"{self.mining_seconds:.1f}"
        semi_hard, hard = (self.triplets.get(kind, 0) for kind in ("semi-hard", "hard"))
        return (
            f"{self.round:>5}  {semi_hard:>9,}  {hard:>9,}  {self.active:>6.0%}  "
            f"{self.loss:.4f}  {quality}  {mining:>6}  {self.training_seconds:>8.1f}"
        )


@dataclass(frozen=True, kw_only=True)
class Done:
    """What all rounds of the plan came to. baselines: without training; begun_with: MAP@R of round 0's checkpoint."""

    run_dir: str
    rounds: list[RoundLine]
    best: Best
    why: str
    baselines: dict[str, Measures]
    begun_with: float | None

    def __str__(self) -> str:
        run = Run(storage.location(self.run_dir))
        lines = [
            f"validation MAP@R {measures['map_at_r']:.3f}  {name}, without training"
            for name, measures in self.baselines.items()
        ]
        if self.begun_with is not None:
            lines.append(f"validation MAP@R {self.begun_with:.3f}  the checkpoint that the rounds began with")
        lines += [HEAD, *map(str, self.rounds), self.why]
        lines += [f"best: {run.best_checkpoint}, {self.best}"]
        worse = worse_than_untrained(self.baselines, "the best checkpoint", self.best.validation_map_at_r)
        return "\n".join([*lines, *([worse] if worse else []), f"report: {run.index_page}"])


def run_rounds(
    run_dir: Path | str,
    rounds: int = 3,
    recipe: Recipe | Path | str = "best",
    beam_options: PipelineOptions | None = None,
    patience: int | None = None,
) -> Done:
    """Does what is left of the plan, after having made or lengthened it so that it has that many rounds.

    Args:
      run_dir: with a corpus.
      recipe: or what `read_recipe` takes: `best`, `plain`, a .toml file.
      beam_options: where mining runs; None runs it in this process.
      patience: rounds without a better validation MAP@R that end it.
    Raises:
      Locked: if another process works there.
      InputError: if rounds or patience is below 1, if the plan that is under way has another recipe, if there is
        patience and no validation split, or if the embeddings have collapsed.
    """
    at_least_one(rounds=rounds, patience=patience)
    run_dir = storage.location(run_dir)
    recipe = read_recipe(str(recipe)) if isinstance(recipe, str | Path) else recipe
    with lock.hold(run_dir, lock.MINER, lock.TRAINER):
        state = Rounds(run_dir, beam_options or in_process())
        why = state.follow(state.plan(rounds, recipe, patience))
        best = state.keep_best()
        pages.write_index(run_dir, state.corpus)
        return Done(
            run_dir=str(run_dir), rounds=list(state.lines()), best=best, why=why, baselines=state.baselines(),
            begun_with=state.history(0).get(0),
        )  # fmt: skip


class Rounds:
    """The rounds of a run directory. All their state is on disk."""

    def __init__(self, run_dir: Path, options: PipelineOptions):
        self.run_dir, self.run, self.options = run_dir, Run(run_dir), options
        self.corpus = Corpus.open(run_dir)
        self.validates = has_queries(self.corpus, self.corpus.split("validation"))
        if not self.validates:
            log.warning("%s, so nothing is measured and the newest checkpoint counts as best", self._unmeasured)

    @property
    def _unmeasured(self) -> str:
        return f"{self.corpus.directory}: no two rows of the validation split are of one class"

    def plan(self, rounds: int, recipe: Recipe, patience: int | None) -> Plan:
        """The plan on disk, made or lengthened if need be."""
        if patience and not self.validates:
            raise InputError(
                f"--patience {patience}: {self._unmeasured}, so no round tells of a gain. Leave --patience out, or "
                f"ingest with a larger --validation_share into a new --run_dir."
            )
        plan = manifests.read_if_there(self.run.plan, Plan) or Plan(stretches=[])
        first = self._trained()
        if plan.stretches:
            current = plan.stretches[-1]
            if first < current.last and (current.recipe, current.patience) != (recipe, patience):
                raise InputError(
                    f"{self.run.plan}: rounds {current.first} to {current.last - 1} are under way with another recipe "
                    f"or patience. Go on with that one, or remove the plan to leave them as they are."
                )
            first = max(first, current.last)
        if rounds > first:
            more = Stretch(first=first, last=rounds, recipe=recipe, patience=patience)
            plan = Plan(stretches=[*plan.stretches, more])
            manifests.write(self.run.plan, plan)
        return plan

    def _trained(self) -> int:
        """How many rounds are trained."""
        newest = self.run.newest_checkpoint()
        return newest.number if newest else 0

    def follow(self, plan: Plan) -> str:
        """Does what is not done yet, from the last round that is trained on. Returns why it ended."""
        first = self.run.round(0)
        if self.run.newest_checkpoint() is None:
            self._begin(plan.stretches[0].recipe)
        elif any(one.first == 0 and one.recipe.warmup for one in plan.stretches) and self._never_warmed_up(first):
            log.warning(
                "no warm-up: %s was there already, and the warm-up's learning rate could undo what it knows. If it is "
                "untrained: python -m trainer.warmup --run_dir %s", first.checkpoint, self.run_dir,
            )  # fmt: skip
        # Until it is mined, its checkpoint may be another than was measured.
        if self.validates and first.checkpoint.exists() and not (first.manifest.exists() and self._validation(first)):
            log.info("%s", evaluate_rounds(self.run_dir, (0,), "validation", retrieval_only=True))
        for stretch in plan.stretches:
            for number in range(max(stretch.first, self._trained() - 1), stretch.last):
                self._round(self.run.round(number), stretch)
                if self._without_gain(number + 1, stretch.first) >= (stretch.patience or math.inf):
                    return f"no better validation MAP@R for {stretch.patience} rounds; more: remove {self.run.plan}"
        return f"all {self._trained()} rounds are done; more: --rounds {self._trained() + 1}"

    def _begin(self, recipe: Recipe) -> None:
        if recipe.warmup:
            log.info("%s", warm_up(self.run_dir, recipe.warmup))
        else:
            log.info("%s", write_first(self.run_dir, InitOptions(seed=recipe.train.seed)))

    def _never_warmed_up(self, first: Round) -> bool:
        return not first.manifest.exists() and not (first.train / "warmup.json").exists()

    def _round(self, round: Round, stretch: Stretch) -> None:
        """Mines, trains and looks at a round, as far as that is not done."""
        if not round.next.checkpoint.exists():
            recipe = stretch.recipe
            mine(self.run_dir, recipe.mining, recipe.packing, self.options)
            train_held(self.run_dir, recipe.train, Schedule(first=stretch.first, rounds=stretch.last - stretch.first))
        if not round.metrics.exists():  # somebody made room
            return
        if self.validates and self._validation(round.next) is None:
            evaluate_rounds(self.run_dir, (round.next.number,), "validation", retrieval_only=True)
            self._log_validation(round)
            log.info("%s", HEAD)
            log.info("%s", self._line(round))
        if not round.report.exists():
            self._report(round)
        self._look_for_collapse(round, stretch)

    def _log_validation(self, round: Round) -> None:
        """For TensorBoard, at the step that training the round ended at."""
        if found := self._validation(round.next):
            step = self._metrics(round).total_steps
            with event_log(round, ".validation") as logs, logs.as_default(step=step):
                for name, value in found.measures.items():
                    tf.summary.scalar(f"validation/{name}", value)

    def _report(self, round: Round) -> None:
        """Without its page a round goes on."""
        try:
            pages.write_round(self.run_dir, round.number, self.corpus)
            pages.write_index(self.run_dir, self.corpus)
        except Exception as error:  # whatever it is, training is worth more: it is told, and the rounds go on
            a_bug = not isinstance(error, InputError)
            log.warning("round %d goes without a report: %s", round.number, error, exc_info=a_bug)

    def _metrics(self, round: Round) -> Metrics:
        return manifests.read(round.metrics, Metrics, round=round.number)

    def _validation(self, round: Round) -> Evaluation | None:
        """How a round's checkpoint does on the validation split, if that was asked of this checkpoint."""
        number = round.number
        found = manifests.read_if_there(round.evaluation("validation"), Evaluation, round=number, split="validation")
        trained = manifests.read_if_there(self.run.round(number - 1).metrics, Metrics, round=number - 1)
        mined = manifests.read_if_there(round.manifest, TripletsManifest, round=number)
        held = [trained.next_checkpoint_digest] if trained else [mined.checkpoint_digest] if mined else []
        return None if found and held and found.checkpoint_digest != held[0] else found

    def baselines(self) -> dict[str, Measures]:
        """Of the validation split; none without one."""
        return measure_baselines(self.corpus, "validation") if self.validates else {}

    def lines(self) -> Iterator[RoundLine]:
        """Of all rounds that were trained."""
        return (self._line(round) for round in self.run.rounds() if round.metrics.exists())

    def _line(self, round: Round) -> RoundLine:
        facts, trained, found = facts_of(round, self.corpus), self._metrics(round), self._validation(round.next)
        return RoundLine(
            round=round.number, triplets=facts.kinds,
            loss=trained.epochs[-1].loss, active=trained.epochs[-1].active_share,
            recall_at_1=found.measures["recall_at_1"] if found else None,
            map_at_r=found.measures["map_at_r"] if found else None,
            mining_seconds=facts.stats.mining_seconds if facts.stats else None, training_seconds=trained.seconds,
        )  # fmt: skip

    def history(self, last: int) -> dict[int, float]:
        """Validation MAP@R by checkpoint, up to round `last`'s; the best one's stays if somebody removed its round."""
        found = {number: self._validation(self.run.round(number)) for number in range(last + 1)}
        history = {number: value.measures["map_at_r"] or 0.0 for number, value in found.items() if value}
        best = manifests.read_if_there(self.run.best, Best)
        if best and best.validation_map_at_r and best.round < last and not self.run.round(best.round).path.exists():
            history[best.round] = best.validation_map_at_r
        return history

    def _without_gain(self, last: int, first: int) -> int:
        """For how many rounds validation MAP@R has not risen, counted from round `first` on."""
        history = self.history(last)
        best = max(history, key=lambda number: (history[number], -number)) if history else last
        return last - max(best, first)

    def keep_best(self) -> Best:
        """Copies the checkpoint with the highest validation MAP@R to best/; one that has collapsed only if all have."""
        newest = self.run.newest_checkpoint()
        number = newest.number if newest else 0
        history = self.history(number)
        spread = {n: value for n, value in history.items() if not collapse(self._mean_norm(n))}
        history = spread or history
        best = Best(round=number, validation_map_at_r=None)
        if history:
            number = max(history, key=lambda n: (history[n], -n))
            best = replace(best, round=number, validation_map_at_r=history[number])
        source = kept_checkpoint(self.run, best.round)
        if source != self.run.best_checkpoint:
            copy_checkpoint(source, self.run.best_checkpoint)
        manifests.write(self.run.best, best)
        return best

    def _mean_norm(self, number: int) -> float:
        """Of the mean of a checkpoint's validation embeddings."""
        found = self._validation(self.run.round(number))
        return math.sqrt(max(0.0, 1 - (found.measures["mean_distance"] or 0.0) / 2)) if found else 0.0

    def _look_for_collapse(self, round: Round, stretch: Stretch) -> None:
        """Says when all embeddings lie together after a round; raises InputError if the loss sits at the margin too.

        After the first round embeddings may still lie as the network began.
        """
        trained, recipe = self._metrics(round), stretch.recipe
        collapsed = collapse(self._mean_norm(round.next.number))
        if not collapsed:
            return
        loss, hard = trained.epochs[-1].loss, "hard" in dict(recipe.mining.negatives)
        ways = [
            f"set train.learning_rate below {recipe.train.learning_rate:g}",
            "leave hard negatives out of mining.negatives" if hard else "",
            "give it a [warmup]" if recipe.warmup is None else "",
        ]
        said = (
            f"round {round.number}: {collapsed} The loss is {loss:.3f}, the margin {trained.margin}. "
            f"In another recipe, {' or '.join(filter(None, ways))}; then begin in a new --run_dir."
        )
        if round.number == 0 or loss <= 0.9 * trained.margin:
            log.warning("%s", said)
        else:
            raise InputError(f"{said} The best checkpoint is {self.keep_best()}.")
