"""A round's training from start to checkpoint, with the plain triplet loss unless told otherwise."""

import functools
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path
from typing import Any

import keras
import msgspec
import tensorflow as tf

from pipeline.corpus.corpus import Corpus
from pipeline.embedding.decoding import rows_of
from pipeline.embedding.machine import device_name
from pipeline.embedding.network import Network, load_network
from pipeline.errors import InputError
from pipeline.files import manifests, storage
from pipeline.files.layout import Round, Run
from pipeline.mining.manifest import TripletsManifest, open_triplets, store_of
from pipeline.process import lock
from pipeline.process.commands import log, postponed_stop
from pipeline.process.progress import Stage, live
from pipeline.reporting.results import Epoch, Metrics
from pipeline.triplets.draws import draw_key
from trainer.batches import check_lengths, packs_per_batch, triplet_batches
from trainer.events import event_log
from trainer.kinds import Kinds
from trainer.memory import Memory
from trainer.options import TrainOptions
from trainer.state import SAVE_SECONDS, Resumable, restore_optimizer, save_optimizer
from trainer.step import SUMS, Step, optimizer_of, scaled_for, strategy_for

BATCH_ROWS = 128  # images a batch where packs do not say it
READ_SECONDS = 1.0  # between two looks at what steps came to: until then a device need not wait for us


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate falls to a tenth over so many rounds, from `first` on."""

    first: int
    rounds: int = 1

    def learning_rate(self, peak: float, round: int, share: float) -> float:
        """share: of the round, how much is done."""
        return decayed(peak, (round - self.first + share) / self.rounds)


@dataclass(kw_only=True)
class Totals:
    """Of an epoch that is under way. idle: steps without triplets, mined or picked. sums: of `step.SUMS`."""

    batches: int = 0
    steps: int = 0
    idle: int = 0
    triplets: int = 0
    sums: dict[str, float] = default(default_factory=lambda: dict.fromkeys(SUMS, 0.0))

    def add(self, values: dict[str, float], batches: int, triplets: int) -> None:
        self.sums = {name: total + values[name] for name, total in self.sums.items()}
        self.batches += batches
        self.triplets += triplets
        self.steps += 1
        self.idle += triplets == 0 and not values["loss"]

    def mean(self) -> Epoch:
        counted = max(self.triplets, 1)  # a callback may have ended it before the first triplet
        each = {name: self.sums[name] / counted for name in ("d_ap", "d_an")}
        return Epoch(
            loss=self.sums["loss"] / max(self.steps - self.idle, 1), triplets=self.triplets, **each,
            memory_loss=self.sums["memory_loss"] / self.steps, active_share=self.sums["active"] / counted,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A step that was taken and not looked at yet. values: its SUMS, on the device."""

    values: Any
    batches: int
    triplets: int
    rows: int
    learning_rate: float


@dataclass(kw_only=True)
class Progress:
    """How far a round's training is, as far as it was looked at. rows: image passes."""

    step: int = 0
    rows: int = 0
    seconds: float = 0.0
    epochs: list[Epoch] = default(default_factory=list)
    totals: Totals = default(default_factory=Totals)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training the newest mined round came to. metrics: None if it was trained already. unlike: then, in what it
    was trained otherwise than asked for."""

    run_dir: str
    round: int
    checkpoint: str
    metrics: Metrics | None
    unlike: str = ""

    def __str__(self) -> str:
        after = f"  {self.checkpoint}   next: python -m pipeline.mine --run_dir {self.run_dir}"
        if self.metrics is None:
            if not self.unlike:
                return f"round {self.round} is trained already; nothing to do\n{after}"
            again = f"To train it anew remove {self.checkpoint}."
            return f"round {self.round} is trained already, with {self.unlike}. {again}\n{after}"
        m = self.metrics
        each = " + ".join(f"{value:.2f} of scope {scope}" for scope, value in m.triplets_per_image_pass.items())
        lines = [f"round {self.round} trained on {m.device}"]
        lines += [f"  epoch {number}: {epoch}" for number, epoch in enumerate(m.epochs, 1)]
        if m.stopped_by == "min_active":
            lines.append(f"  ended after epoch {len(m.epochs)}: too few triplets are still active (--min_active)")
        lines.append(f"  {m.steps} steps, {m.image_passes:,} image passes with {each} each, {m.seconds:.0f} s")
        return "\n".join([*lines, after])


def decayed(learning_rate: float, progress: float) -> float:
    """From the full rate to a tenth of it along half a cosine.

    Loshchilov and Hutter, SGDR (https://arxiv.org/abs/1608.03983); a restart each schedule. Keras' CosineDecay wants to
    know the number of steps, and of later rounds of a schedule nobody knows it.
    """
    return learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def train_newest(
    run_dir: Path | str,
    options: TrainOptions = TrainOptions(),  # noqa: B008  frozen
    schedule: Schedule | None = None,
    save_seconds: float = SAVE_SECONDS,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Trained:
    """Trains on the newest mined round, writes the next checkpoint. Holds the run directory as its trainer.

    Args:
      run_dir: with a mined round.
      schedule: of the learning rate over several rounds; None for this round alone.
      save_seconds: between two saves of what an interrupted training goes on from, at the least.
      callbacks: called as `model.fit` would; a step is a batch. One that sets `model.stop_training` ends the round,
        after the step that is under way. With callbacks each step waits until its loss is read.
    Raises:
      InputError: if nothing is mined, a file is not what its manifest says, or the loss is no number.
      Locked: if another process trains there.
    """
    run_dir = storage.location(run_dir)
    with lock.hold(run_dir, lock.TRAINER):
        return train_held(run_dir, options, schedule, save_seconds, callbacks)


def train_held(
    run_dir: Path, options: TrainOptions, schedule: Schedule | None = None, save_seconds: float = SAVE_SECONDS,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Trained:  # fmt: skip
    """The same, where the caller holds the run directory."""
    run, corpus = Run(run_dir), Corpus.open(run_dir)
    round = run.mined()
    target = round.next.checkpoint
    trained = functools.partial(Trained, run_dir=str(run_dir), round=round.number, checkpoint=str(target))
    if target.exists():
        state_path(round).unlink(missing_ok=True)  # of a training that was killed right after its checkpoint was there
        before = manifests.read_if_there(round.metrics, Metrics, round=round.number)
        return trained(metrics=None, unlike=_unlike(before.options, options) if before else "")
    manifest = open_triplets(round, corpus)
    keras.utils.set_random_seed(options.seed)  # before anything is loaded: Dropout draws its generator's seed then
    network = _mined_with(round, manifest)
    strategy = strategy_for(tf.config.list_physical_devices("GPU"))
    with storage.fetched(round.triplets, [shard.file for shard in manifest.shards]) as triplets:
        check_lengths(triplets, manifest)
        with strategy.scope():
            if strategy.num_replicas_in_sync > 1:  # its variables must be made in there
                network = load_network(round.checkpoint)
            optimizer = scaled_for(network.model, optimizer_of(options))
            restore_optimizer(optimizer, network.model, round.optimizer, manifest.checkpoint_digest)
        training = Training(
            round, corpus, manifest, network, optimizer, strategy, options, schedule or Schedule(first=round.number),
            triplets, save_seconds, keras.callbacks.CallbackList(list(callbacks), model=network.model),
        )  # fmt: skip
        return trained(metrics=training.run())


def _unlike(before: dict[str, Any], options: TrainOptions) -> str:
    """The options that were others: what they were, and what they are now."""
    asked = _as_json(options)
    others = [name for name, value in asked.items() if before.get(name, value) != value]
    return ", ".join(f"{name} {before[name]} (asked for {asked[name]})" for name in others)


def _as_json(options: TrainOptions) -> dict[str, Any]:
    return json.loads(msgspec.json.encode(options))  # type: ignore[no-any-return]


def state_path(round: Round) -> Path:
    """Of what an interrupted training goes on from."""
    return round.train / "state.npz"


def _mined_with(round: Round, manifest: TripletsManifest) -> Network:
    """The checkpoint, compared with what the round was mined with."""
    if not round.checkpoint.exists():
        raise InputError(
            f"round {round.number} is mined, and {round.checkpoint} is missing. Put it back; or, if the round was "
            f"mined from embeddings, for which there is none, train on its packs yourself (docs/own-training-loop.md)."
        )
    network = load_network(round.checkpoint)
    digest = network.digest()
    if digest != manifest.checkpoint_digest:
        raise InputError(
            f"{round.checkpoint} is {digest[:12]}, round {round.number} was mined with "
            f"{manifest.checkpoint_digest[:12]}. Put that checkpoint back, or remove {round.triplets} and mine again."
        )
    return network


class Training:
    """The epochs of a round; what comes of them is written at the end, the checkpoint last."""

    def __init__(
        self, round: Round, corpus: Corpus, manifest: TripletsManifest, network: Network, optimizer: Any,
        strategy: Any, options: TrainOptions, schedule: Schedule, triplets: Path, save_seconds: float,
        callbacks: keras.callbacks.CallbackList,
    ):  # fmt: skip
        """triplets: a local directory with the round's shards."""
        self.round, self.corpus, self.manifest = round, corpus, manifest
        self.network, self.optimizer, self.options, self.schedule = network, optimizer, options, schedule
        self.callbacks, self.triplets, self.replicas = callbacks, triplets, strategy.num_replicas_in_sync
        packing = manifest.packing
        self.batch_rows = options.batch_rows or (BATCH_ROWS if packing.lone else packing.pack_rows)
        if self.batch_rows < packing.pack_rows:
            raise InputError(f"--batch_rows {self.batch_rows} is less than a pack's {packing.pack_rows} rows")
        self.inputs = network.inputs(corpus.feature)
        self.memory = None
        if options.memory_rows:
            store = store_of(round, corpus, manifest)
            with strategy.scope():
                self.memory = Memory(store, options.memory_rows, manifest.mining.seed)
        kinds = None
        if options.loss == "semi-hard":
            with strategy.scope():
                kinds = self.memory.kinds if self.memory else Kinds.of(corpus.split("train"))
        self.step = Step(
            network.model, optimizer, options.loss, manifest.mining.margin, strategy, self.batches(0).element_spec,
            options.layer_rates, self.memory, options.temperature, kinds,
        )  # fmt: skip
        digests = [manifest.triplet_digest, manifest.checkpoint_digest]
        shaped_by = [*digests, options, schedule, self.replicas, network.extras]
        more = [self.memory.embedding] if self.memory else []
        self.state = Resumable(state_path(round), shaped_by, network.model, optimizer, Progress(), save_seconds, more)
        self.taken: list[Taken] = []
        self.read = time.monotonic()
        before = manifests.read_if_there(Round(round.run, round.number - 1).metrics, Metrics, round=round.number - 1)
        self.steps_before = before.total_steps if before else 0

    def batches(self, epoch: int, first_batch: int = 0) -> Any:
        """A tf.data.Dataset of what a step takes; where one GPU trains, it copies there ahead."""
        seed = int(draw_key(self.options.seed, self.round.number, f"epoch/{epoch}")) & 0x7FFFFFFF
        batches = triplet_batches(
            self.triplets, self.manifest, self.inputs, self.batch_rows, seed, first_batch, self.memory
        )
        gpus = tf.config.list_logical_devices("GPU")
        texts = any(spec.dtype == tf.string for spec in tf.nest.flatten(batches.element_spec))  # no GPU holds any
        if len(gpus) != 1 or texts:
            return batches
        return batches.apply(tf.data.experimental.prefetch_to_device(gpus[0].name, 2))

    def run(self) -> Metrics:
        """All epochs, from where an interrupted run was."""
        resumed = self.state.restore()
        progress: Progress = self.state.progress
        per_epoch = math.ceil(self.manifest.packs / packs_per_batch(self.manifest, self.batch_rows) / self.replicas)
        steps, stopped_by = self.options.epochs * per_epoch, "epochs"
        started = time.time() - progress.seconds
        stage = Stage(name="train", unit="steps", total=steps, done=lambda: progress.step)

        def look() -> None:
            progress.seconds = time.time() - started
            self._look(progress, logs)

        def save() -> None:
            look()
            self.state.save()

        with event_log(self.round) as logs, live(stage), postponed_stop(save) as stop_if_asked:
            log.info(
                "training round %d on %s: %s triplets in %s packs", self.round.number, device_name(),
                f"{self.manifest.triplets:,}", f"{self.manifest.packs:,}",
            )  # fmt: skip
            if resumed:
                log.info("goes on at step %d", progress.step)
            self.network.model.stop_training = False
            self.callbacks.on_train_begin()
            while len(progress.epochs) < self.options.epochs and stopped_by == "epochs":
                self.callbacks.on_epoch_begin(len(progress.epochs))
                for _ in self._epoch(progress, steps):
                    if self.callbacks.callbacks or time.monotonic() - self.read > READ_SECONDS:
                        look()
                    if self.network.model.stop_training:
                        break
                    stop_if_asked()
                    if self.state.is_due():
                        save()
                look()
                stopped_by = self._end_epoch(progress)
            self.callbacks.on_train_end()
            return self._finish(progress, stopped_by, time.time() - started)

    def _epoch(self, progress: Progress, steps: int) -> Iterator[None]:
        """Takes the steps that are left of an epoch."""
        batches, done = iter(self.batches(len(progress.epochs), progress.totals.batches)), progress.step
        while group := list(itertools.islice(batches, self.replicas)):
            rate = self.schedule.learning_rate(self.options.learning_rate, self.round.number, done / steps)
            self.optimizer.learning_rate = rate
            triplets, rows = sum(len(b["triplets"]) for b in group), sum(rows_of(b["inputs"]) for b in group)
            self.callbacks.on_train_batch_begin(progress.totals.steps)
            self.taken.append(
                Taken(values=self.step(group), batches=len(group), triplets=triplets, rows=rows, learning_rate=rate)
            )
            done += 1
            yield

    def _look(self, progress: Progress, logs: Any) -> None:
        """Takes up what the steps since the last look came to: one read from the device."""
        taken, self.taken, self.read = self.taken, [], time.monotonic()
        if not taken:
            return
        for step, found in zip(taken, tf.stack([step.values for step in taken]).numpy().astype(float), strict=True):
            values = dict(zip(SUMS, found.tolist(), strict=True))
            if not all(map(math.isfinite, values.values())):  # not later: JSON has no NaN, and the state is JSON
                self.state.forget()
                raise InputError(
                    f"the loss became {values['loss']} in step {progress.step + 1}, with {values}; no checkpoint was "
                    f"written. Lower --learning_rate."
                )
            progress.totals.add(values, step.batches, step.triplets)
            progress.rows += step.rows
            progress.step += 1
            active = values["active"] / max(step.triplets, 1)
            seen = {"loss": values["loss"], "active_share": active, "learning_rate": step.learning_rate}
            seen |= {"memory_loss": values["memory_loss"]} if self.memory else {}
            with logs.as_default(step=self.steps_before + progress.step):
                for name, value in seen.items():
                    tf.summary.scalar(name, value)
            self.callbacks.on_train_batch_end(progress.totals.steps - 1, seen)

    def _end_epoch(self, progress: Progress) -> str:
        """Takes up an epoch that is done. Returns what ends the round, `epochs` if nothing else does."""
        epoch, progress.totals = progress.totals.mean(), Totals()
        progress.epochs.append(epoch)
        log.info("epoch %d: %s", len(progress.epochs), epoch)
        self.callbacks.on_epoch_end(len(progress.epochs) - 1, msgspec.to_builtins(epoch))
        if self.network.model.stop_training:
            return "callback"
        return "min_active" if epoch.active_share < self.options.min_active else "epochs"

    def _finish(self, progress: Progress, stopped_by: str, seconds: float) -> Metrics:
        manifest, digest = self.manifest, self.network.digest()
        metrics = Metrics(
            round=self.round.number, device=device_name(), replicas=self.replicas, margin=manifest.mining.margin,
            options=_as_json(self.options), steps=progress.step,
            total_steps=self.steps_before + progress.step, image_passes=progress.rows,
            triplets_per_image_pass={s: sum(kinds.values()) / manifest.rows for s, kinds in manifest.counts.items()},
            epochs=progress.epochs, stopped_by=stopped_by, seconds=round(seconds, 2),
            checkpoint_digest=manifest.checkpoint_digest, next_checkpoint_digest=digest,
        )  # fmt: skip
        manifests.write(self.round.metrics, metrics)
        save_optimizer(self.optimizer, self.round.next.optimizer, digest)
        self.network.save(self.round.next.checkpoint)
        self.state.forget()
        return metrics
