"""In-batch training before anything is mined: round 0's checkpoint on what each batch has."""

import math
import time
from dataclasses import dataclass, replace
from dataclasses import field as default
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from pipeline.corpus.corpus import Corpus
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.machine import device_name
from pipeline.embedding.network import load_network
from pipeline.embedding.store import mean_norm
from pipeline.errors import InputError
from pipeline.files import manifests, storage
from pipeline.files.layout import Run
from pipeline.mining.mined import collapse
from pipeline.process.commands import log, postponed_stop
from pipeline.process.progress import Stage, live
from trainer import losses
from trainer.batches import class_batches, usable_classes
from trainer.first import first_network
from trainer.loop import READ_SECONDS, decayed
from trainer.options import InitOptions, WarmupOptions
from trainer.past import PastRows
from trainer.state import SAVE_SECONDS, Resumable, save_optimizer
from trainer.step import scaled_for

ROWS_A_CLASS = 4


@dataclass(kw_only=True)
class Progress:
    losses: list[float] = default(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class WarmedUp:
    """warmup.json: which checkpoint came of it, and with which options. `first_loss` and `last_loss`: of a tenth.

    mean_norm: of the mean embedding.
    """

    FORMAT: ClassVar[str] = "triplet-miner-warmup/2"
    run_dir: str
    path: str
    digest: str
    corpus_fingerprint: str
    options: WarmupOptions
    steps: int
    first_loss: float
    last_loss: float
    seconds: float
    mean_norm: float = 0.0
    already: bool = False

    def __str__(self) -> str:
        what = f"{self.path} is warmed up already; nothing to do"
        if not self.already:
            loss = f"loss {self.first_loss:.4f} to {self.last_loss:.4f}"
            what = f"warm-up: {self.steps} steps, {loss} in {self.seconds:.0f} s"
        if said := collapse(self.mean_norm):
            folder = storage.location(self.path).parent
            what += (
                f"\n  {said} Remove the folder {folder}. If the network is your own, make it anew with trainer.init. "
                f"Then warm up with another --learning_rate than {self.options.learning_rate:g}, more --steps, or "
                f"another --margin than {self.options.margin:g}."
            )
        return f"{what}\n  {self.path}   next: python -m pipeline.mine --run_dir {self.run_dir}"


class Stepper:
    """Updates the model from one batch; with a memory, fills it from `memory_start` on and compares with it."""

    def __init__(self, model: keras.Model, optimizer: Any, options: WarmupOptions, past: PastRows | None, spec: Any):
        loss_of, names = losses.IN_BATCH[options.loss]
        of_loss = {name: getattr(options, name) for name in names}

        # One trace for every batch: a trace for one shape may round otherwise, and a resumed run would differ.
        def traced(past: PastRows | None) -> Any:
            @tf.function(input_signature=spec, autograph=False)
            def step(inputs: Any, labels: Any) -> Any:
                memory = {"memory": past.embedding, "memory_labels": past.label} if past else {}
                with tf.GradientTape() as tape:
                    embeddings = model(inputs, training=True)
                    loss = loss_of(labels, embeddings, **of_loss, **memory)
                    scaled = optimizer.scale_loss(loss)  # by 1 but in float16
                gradients = tape.gradient(scaled, model.trainable_variables)
                optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
                if past:
                    past.push(embeddings, labels)
                return loss

            return step

        self._first, self._start = traced(None), options.memory_start
        self._later = traced(past) if past else self._first

    def __call__(self, done: float, inputs: Any, labels: Any) -> Any:
        """The loss. done: share of the steps."""
        return (self._first if done < self._start else self._later)(inputs, labels)


def warm_up(run_dir: Path, options: WarmupOptions, save_seconds: float = SAVE_SECONDS) -> WarmedUp:
    """Trains round 0's checkpoint, or a new network if there is none.

    Args:
      save_seconds: between two saves of what an interrupted warm-up goes on from, at the least.
    Raises:
      InputError: if round 0 is mined already, or if the loss is no number.
    """
    round, corpus = Run(run_dir).round(0), Corpus.open(run_dir)
    path, told, unfinished = round.checkpoint, round.train / "warmup.json", round.train / "warmup.npz"
    if round.manifest.exists():
        raise InputError(
            f"round 0 is mined already, {path} must stay as it is. Warm up in a new --run_dir; or, if nothing was "
            f"trained on that round, remove {round.triplets} first."
        )
    split = corpus.split("train")
    split.check()
    keras.utils.set_random_seed(options.seed)  # before anything is loaded: Dropout draws its generator's seed then
    # Without a checkpoint none is written before the end: one that is there counts as warmed up.
    network = load_network(path) if path.exists() else first_network(corpus, InitOptions(seed=options.seed))
    model, digest = network.model, network.digest()
    done = manifests.read_if_there(told, WarmedUp) if path.exists() else None
    if done and (done.digest, done.options, done.corpus_fingerprint) == (digest, options, corpus.fingerprint):
        unfinished.unlink(missing_ok=True)  # of a warm-up that was killed right after its checkpoint was there
        return replace(done, run_dir=str(run_dir), path=str(path), already=True)
    classes = min(max(2, options.batch_rows // ROWS_A_CLASS), len(usable_classes(corpus)))
    steps = options.steps or options.epochs * math.ceil(split.rows / (ROWS_A_CLASS * classes))
    optimizer = scaled_for(model, keras.optimizers.Adam(options.learning_rate))
    optimizer.build(model.trainable_variables)  # or the step is traced twice
    key = [corpus.fingerprint, options, digest]
    past = PastRows(options.memory_rows, Embedder(network, corpus.feature).dim) if options.memory_rows else None
    remembered = past.variables if past else ()
    state = Resumable(unfinished, key, model, optimizer, Progress(), save_seconds, remembered)
    resumed = state.restore()
    progress = state.progress

    batches = class_batches(
        corpus, network.inputs(corpus.feature), classes, ROWS_A_CLASS, steps, options.seed,
        first_step=len(progress.losses),
    )  # fmt: skip

    step = Stepper(model, optimizer, options, past, batches.element_spec)
    started = time.time() - progress.seconds
    stage = Stage(name="warm-up", unit="steps", total=steps, done=lambda: len(progress.losses))
    taken, read = list[Any](), time.monotonic()

    def look() -> None:
        """Takes up the losses of the steps since the last look: one read from the device."""
        nonlocal taken, read
        losses = tf.stack(taken).numpy().tolist() if taken else []
        taken, read, progress.seconds = [], time.monotonic(), time.time() - started
        for loss in losses:
            if not math.isfinite(loss):  # not later: JSON has no NaN, and the state is JSON
                state.forget()
                raise InputError(
                    f"the loss became {loss} in step {len(progress.losses) + 1}; no checkpoint was written. Lower "
                    f"--learning_rate."
                )
            progress.losses.append(loss)

    def save() -> None:
        look()
        state.save()

    with live(stage), postponed_stop(save) as stop_if_asked:
        log.info("warm-up on %s: %d steps of %d classes x %d rows", device_name(), steps, classes, ROWS_A_CLASS)
        if resumed:
            log.info("goes on at step %d", len(progress.losses))
        for number, batch in enumerate(batches, len(progress.losses)):
            optimizer.learning_rate = decayed(options.learning_rate, number / steps)
            taken.append(step(number / steps, *batch))
            if time.monotonic() - read > READ_SECONDS:
                look()
            stop_if_asked()
            if state.is_due():
                save()
        look()
        tail = max(1, len(progress.losses) // 10)
        done = WarmedUp(
            run_dir=str(run_dir), path=str(path), digest=network.digest(), options=options, steps=steps,
            corpus_fingerprint=corpus.fingerprint, first_loss=float(np.mean(progress.losses[:tail])),
            last_loss=float(np.mean(progress.losses[-tail:])), seconds=time.time() - started,
            mean_norm=mean_norm(split.rows, lambda rows: Embedder(network, corpus.feature)(split.read(rows))),
        )  # fmt: skip
        save_optimizer(optimizer, round.optimizer, done.digest)
        manifests.write(told, done)
        network.save(path)
        state.forget()
    return done
