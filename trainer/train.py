"""Train on the newest mined round, with the plain triplet loss unless told otherwise; write the next checkpoint.

python -m trainer.train --run_dir D --init              round 0's checkpoint, seeded weights
python -m trainer.train --run_dir D --online --steps N  the warm-up of round 0's checkpoint, in-batch
python -m trainer.train --run_dir D                     the newest mined round
"""

import argparse
import functools
import itertools
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import command, records, storage
from pipeline.batch_norm import fused
from pipeline.embed import Embedder, check_output, decode_records, input_spec, network_input_shape
from pipeline.packs import LONE
from pipeline.pool import Pool
from pipeline.progress import Stage, live
from pipeline.records import Corpus, InputError, import_tensorflow
from pipeline.selection import draw_key
from trainer import losses, models
from trainer.data import Decoded, online_batches, packs_per_batch, triplet_batches, usable_classes
from trainer.evaluate import embed_split, retrieval
from trainer.state import Resumable, restore_optimizer, save_optimizer
from trainer.step import Step, mixed_precision, strategy_for
from trainer.stored import StoredRows

tf = import_tensorflow()
import keras  # noqa: E402

SETTLING_BATCHES = 40
WARMUP_FORMAT = "triplet-miner-warmup/1"
METRICS_FORMAT = "triplet-miner-metrics/1"
END = {
    "min_active": "too few of its triplets are still active (--min_active)",
    "validation": "MAP@R on the validation split did not rise",
}
BATCH_ROWS = 128  # images a batch where packs do not say it
FRESH_EPOCH = {"batches": 0, "steps": 0, "idle": 0, "triplets": 0, "sums": [0.0] * 5}  # idle: steps without triplets
FRESH_ROWS = 1024  # how many tell the active share before training


def device_name() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return f"CPU ({os.cpu_count()} cores)"
    return ", ".join(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus)


def save_checkpoint(model: Any, path: Path) -> str:
    """Writes a .keras file atomically. Returns its digest."""
    storage.write_atomically(path, model.save)
    return records.checkpoint_digest(model)


def first_model(arguments: argparse.Namespace, corpus: Corpus) -> Any:
    """A network with seeded weights, or the one in a .keras file, checked to be one that can be mined with."""
    spec = next(iter(corpus.features.values()))
    keras.utils.set_random_seed(arguments.seed)
    given = (arguments.model or "").endswith(".keras")
    if given:
        name, model = arguments.model, records.load_checkpoint(storage.location(arguments.model))
    else:
        build = models.by_path(arguments.model) if arguments.model else models.default_for(spec["kind"])
        name, given_shape = arguments.model or build.__name__, models.example_shape(spec)
        try:
            model = build(given_shape)
        except (TypeError, ValueError) as error:
            raise InputError(f"--model {name} cannot be built for examples of shape {given_shape}: {error}") from error
        if not isinstance(model, keras.Model):
            raise InputError(f"--model {name} returned a {type(model).__name__}, expected a keras.Model.")
    shape = network_input_shape(model, corpus.features, name)
    check_output(model, name)
    if spec["kind"] == "text":
        model = models.with_vocabulary(model, train_texts(corpus))
    if arguments.normalize and not isinstance(model.layers[-1], keras.layers.UnitNormalization):
        model = keras.Model(model.inputs, keras.layers.UnitNormalization(name="normalised")(model.outputs[0]))
    if not given:
        settle_statistics(model, corpus, shape, arguments.seed)
    with tempfile.TemporaryDirectory(dir=storage.scratch_in(arguments.run_dir), prefix=".first.tmp") as scratch:
        path = Path(scratch, "model.keras")
        model.save(path)
        Embedder(path, corpus)(corpus.split("train").read(np.arange(1)))  # better refused now than when mining
    seed = "as it is" if given else f"seed {arguments.seed}"
    print(f"first checkpoint: {name}, {model.count_params():,} weights, {seed}")
    return model


def init(arguments: argparse.Namespace, corpus: Corpus) -> int:
    """Writes round 0's checkpoint."""
    path = records.checkpoint_path(arguments.run_dir, 0)
    if path.exists():
        if arguments.model:
            raise InputError(f"{path} is there already. Remove {path.parent} to choose another --model.")
        print(f"{path} is there already; nothing to do")
        return 0
    records.check_split(corpus.split("train"))
    digest = save_checkpoint(first_model(arguments, corpus), path)
    print(f"  {path} ({digest[:12]})   next: python -m pipeline.mine --run_dir {arguments.run_dir}")
    return 0


def train_texts(corpus: Corpus) -> Any:
    """A tf.data.Dataset of batches of the train split's texts."""
    split = corpus.split("train")
    paths = [str(storage.local_copy(split.shard_path(number))) for number in range(len(split.shards))]
    return tf.data.TFRecordDataset(paths).batch(1024).map(lambda batch: decode_records(corpus.features, batch, ()))


def settle_statistics(model: Any, corpus: Corpus, shape: tuple[int, ...], seed: int) -> None:
    """Lets batch normalisation see the corpus before anything is mined.

    With the moving statistics that Keras starts from, an untrained network maps all rows to nearly one point in
    inference mode (mean distance .01 on digits), and round 0 mines noise.
    """
    if not model.non_trainable_variables:
        return
    for inputs, _ in online_batches(corpus, shape, 32, 4, SETTLING_BATCHES, seed):
        model(inputs, training=True)


def online(arguments: argparse.Namespace, corpus: Corpus) -> int:
    """The warm-up: trains round 0's checkpoint, or a new network, on in-batch semi-hard triplets."""
    path = records.checkpoint_path(arguments.run_dir, 0)
    train_dir = records.round_dir(arguments.run_dir, 0) / "train"
    if records.manifest_path(arguments.run_dir, 0).exists():
        raise InputError(f"round 0 is mined already, {path} must stay as it is. Warm up in a new --run_dir.")
    records.check_split(corpus.split("train"))
    # Without a checkpoint none is written before the end: one that is there counts as warmed up.
    model = records.load_checkpoint(path) if path.exists() else first_model(arguments, corpus)
    shape = network_input_shape(model, corpus.features, path)
    classes = min(max(2, (arguments.batch_rows or BATCH_ROWS) // 4), len(usable_classes(corpus)))
    steps = arguments.steps or arguments.epochs * math.ceil(corpus.split("train").rows / (4 * classes))
    key = {
        "corpus": corpus.fingerprint, "steps": steps, "classes": classes, "margin": arguments.margin,
        "learning_rate": arguments.learning_rate, "seed": arguments.seed,
    }  # fmt: skip
    digest = records.checkpoint_digest(model)
    done_path = train_dir / "warmup.json"
    if path.exists() and done_path.exists():
        done = records.read_json(done_path, WARMUP_FORMAT)
        if done["to"] == digest and done["key"] == key:
            print(f"{path} is warmed up already; nothing to do\n  next: python -m pipeline.mine --run_dir "
                  f"{arguments.run_dir}")  # fmt: skip
            return 0
    optimizer = keras.optimizers.Adam(arguments.learning_rate)
    keras.utils.set_random_seed(arguments.seed)
    progress: dict[str, Any] = {"losses": [], "seconds": 0.0}
    state = Resumable(train_dir / "warmup.npz", [key, digest], model, optimizer, progress)
    resumed = state.restore()
    seen: list[float] = progress["losses"]

    # One trace for every batch: a trace for one shape may round otherwise, and a resumed run would differ.
    @tf.function(input_signature=[input_spec(corpus.features, shape), tf.TensorSpec([None], tf.int64)], autograph=False)
    def step(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape, fused(model):
            loss = losses.triplet_semihard_loss(labels, model(inputs, training=True), arguments.margin)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    print(f"warm-up on {device_name()}: {steps} steps of {classes} classes x 4 rows")
    if resumed:
        print(f"  goes on at step {len(seen)}")
    started = time.time() - progress["seconds"]
    with live(Stage("warm-up", "steps", steps, lambda: len(seen))), command.stops_itself() as asked_to_stop:
        for batch in online_batches(corpus, shape, classes, 4, steps, arguments.seed, first_step=len(seen)):
            optimizer.learning_rate = decayed(arguments.learning_rate, len(seen) / steps)
            seen.append(float(step(*batch)))
            progress["seconds"] = time.time() - started
            if asked_to_stop():
                state.save()
                command.stop()
            state.save_when_due()
    if not np.isfinite(seen).all():
        state.forget()
        raise InputError(f"the loss became {seen[-1]}; no checkpoint was written. Lower --learning_rate.")
    to = records.checkpoint_digest(model)
    save_optimizer(optimizer, path.parent, to)
    records.write_json(done_path, {"format": WARMUP_FORMAT, "to": to, "key": key})
    save_checkpoint(model, path)
    state.forget()
    tail = max(1, len(seen) // 10)
    command.note(steps=steps, checkpoint_digest=to)
    print(f"  loss {np.mean(seen[:tail]):.4f} to {np.mean(seen[-tail:]):.4f} in {time.time() - started:.0f} s")
    print(f"  {path}   next: python -m pipeline.mine --run_dir {arguments.run_dir}")
    return 0


def decayed(learning_rate: float, progress: float) -> float:
    """From the full rate to a tenth of it along half a cosine, then the full rate again.

    Loshchilov and Hutter, SGDR (https://arxiv.org/abs/1608.03983); a restart each round, or all --decay_rounds.
    """
    return learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def steps_at(run_dir: Path, number: int) -> int:
    """How many steps on mined triplets led to a round's checkpoint."""
    path = records.round_dir(run_dir, number - 1) / "train" / "metrics.json"
    return int(records.read_json(path, METRICS_FORMAT)["total_steps"]) if path.exists() else 0


def validation_map(model: Any, corpus: Corpus, run_dir: Path) -> float:
    """MAP@R on the validation split, of the model as mining would see it."""
    split = corpus.split("validation")
    with tempfile.TemporaryDirectory(dir=storage.scratch_in(run_dir), prefix=".validation.tmp") as scratch:
        path = Path(scratch, "model.keras")
        model.save(path)
        embeddings = embed_split(Embedder(path, corpus), split)
    return retrieval(embeddings, split.class_of(np.arange(split.rows)))["map_at_r"]


@dataclass(frozen=True, kw_only=True)
class Round:
    """What is trained: the triplets mined in round `mined`, from the checkpoint of round `number`."""

    corpus: Corpus
    mined: int
    number: int
    manifest: dict[str, Any]
    digest: str  # of the checkpoint
    model: Any
    shape: tuple[int, ...]
    run_dir: Path
    triplets: Path  # a local directory with the round's shards
    decoded: Decoded
    stored: StoredRows | None

    @property
    def train_dir(self) -> Path:
        return records.round_dir(self.run_dir, self.number) / "train"

    def batches(self, arguments: argparse.Namespace, epoch: int, first_batch: int = 0) -> Any:
        """A tf.data.Dataset, of which `with_stored` makes what a step takes."""
        seed = int(draw_key(arguments.seed, self.number, f"epoch/{epoch}")) & 0x7FFFFFFF
        return triplet_batches(
            self.triplets, self.manifest, self.shape, arguments.batch_rows, seed, first_batch, pad=arguments.jit,
            decoded=self.decoded, stored=self.stored,
        )  # fmt: skip

    def with_stored(self, batches: Any) -> Iterator[dict[str, Any]]:
        """Batches with the embeddings that each is compared with, as they are when it is asked for."""
        return map(self.stored.add, batches) if self.stored else iter(batches)

    def clear(self) -> None:
        """Frees what is kept for the batches."""
        self.decoded.clear()
        if self.stored:
            self.stored.clear()


def open_round(
    run_dir: Path, mined: int, number: int, corpus: Corpus, manifest: dict[str, Any], triplets: Path, stored_rows: int
) -> Round:
    """Opens a checkpoint for a mined round, whose own checkpoint is compared with the manifest."""
    source = records.checkpoint_path(run_dir, mined)
    model = records.load_checkpoint(source)
    digest = records.checkpoint_digest(model)
    if digest != manifest["checkpoint_digest"]:
        raise InputError(
            f"{source} is {digest[:12]}, round {mined} was mined with {manifest['checkpoint_digest'][:12]}. Put that "
            f"checkpoint back, or remove {records.manifest_path(run_dir, mined).parent} and mine again."
        )
    if number != mined:
        source = records.checkpoint_path(run_dir, number)
        model = records.load_checkpoint(source)
        digest = records.checkpoint_digest(model)
    shape = network_input_shape(model, corpus.features, source)
    stored = None
    if stored_rows:
        class_pool, seed = manifest["options"]["class_pool"], manifest["options"]["seed"]
        stored = StoredRows(Pool(run_dir, mined, manifest["checkpoint_digest"], class_pool, seed), stored_rows, seed)
    return Round(
        corpus=corpus, mined=mined, number=number, manifest=manifest, digest=digest, model=model, shape=shape,
        run_dir=run_dir, triplets=triplets, decoded=Decoded(manifest["features"], shape), stored=stored,
    )  # fmt: skip


def train(arguments: argparse.Namespace, corpus: Corpus) -> int:
    """Trains on the newest mined round."""
    run_dir = arguments.run_dir
    mined = records.newest_round(run_dir, records.manifest_path)
    if mined is None:
        raise InputError(f"nothing is mined in {run_dir} yet. Next: python -m pipeline.mine --run_dir {run_dir}")
    number = mined
    if arguments.newest:
        number = records.newest_round(run_dir, records.checkpoint_path) or 0
    target = records.checkpoint_path(run_dir, number + 1)
    if target.exists():
        print(f"round {number} is trained already: {target}\n  next: python -m pipeline.mine --run_dir {run_dir}")
        return 0
    manifest = records.open_triplets(run_dir, mined, corpus)
    if arguments.batch_rows is None:
        arguments.batch_rows = BATCH_ROWS if manifest["pack_rows"] == LONE else manifest["pack_rows"]
    if arguments.batch_rows < manifest["pack_rows"]:
        raise InputError(f"--batch_rows {arguments.batch_rows} is less than a pack's {manifest['pack_rows']} rows")
    files = [shard["file"] for shard in manifest["shards"]]
    strategy = strategy_for(tf.config.list_physical_devices("GPU"))
    with storage.fetched(records.manifest_path(run_dir, mined).parent, files) as triplets:
        with strategy.scope():
            round_ = open_round(run_dir, mined, number, corpus, manifest, triplets, arguments.stored_rows)
            optimizer = keras.optimizers.Adam(arguments.learning_rate)
            restore_optimizer(optimizer, round_.model, records.checkpoint_path(run_dir, number).parent, round_.digest)
        keras.utils.set_random_seed(arguments.seed)
        try:
            return train_round(arguments, round_, optimizer, strategy)
        finally:
            round_.clear()


def train_round(arguments: argparse.Namespace, round_: Round, optimizer: Any, strategy: Any) -> int:
    """The epochs of a round; what comes of them is written at the end, the checkpoint last."""
    manifest, model, train_dir = round_.manifest, round_.model, round_.train_dir
    margin = manifest["margin"]
    replicas = strategy.num_replicas_in_sync
    progress: dict[str, Any] = {
        "step": 0, "rows": 0, "seconds": 0.0, "fresh": None, "epochs": [],
        "epoch": dict(FRESH_EPOCH),
    }  # fmt: skip
    names = (
        "epochs", "batch_rows", "learning_rate", "decay_rounds", "seed", "loss", "stored_rows", "min_active",
        "mixed_precision", "jit",
    )  # fmt: skip
    shaping = {name: getattr(arguments, name) for name in names}
    key = [manifest["triplet_digest"], round_.digest, shaping, replicas]
    stored = round_.stored
    state = Resumable(train_dir / "state.npz", key, model, optimizer, progress, stored.embedding if stored else None)
    resumed = state.restore()
    spec = round_.batches(arguments, 0).element_spec | (stored.spec if stored else {})
    step = Step(model, optimizer, arguments.loss, margin, strategy, spec, arguments.jit)
    logs = train_dir / "logs" if storage.is_local(train_dir) else round_.triplets / "logs"
    log = tf.summary.create_file_writer(str(logs))
    print(
        f"training round {round_.number} on {device_name()}: {manifest['triplets']:,} triplets in "
        f"{manifest['packs']:,} packs" + ("" if round_.mined == round_.number else f", mined in round {round_.mined}")
    )
    if progress["fresh"] is None:
        some = round_.batches(arguments, 0).take(max(1, FRESH_ROWS // arguments.batch_rows))
        progress["fresh"] = step.active(round_.with_stored(some))
    print(f"  active when mined: all; in training mode: {progress['fresh']:.0%}")
    if resumed:
        print(f"  goes on at step {progress['step']}")
    per_epoch = math.ceil(manifest["packs"] / packs_per_batch(manifest, arguments.batch_rows) / replicas)
    steps = arguments.epochs * per_epoch
    steps_before = steps_at(round_.run_dir, round_.number)
    stale = steps_before - steps_at(round_.run_dir, round_.mined)  # the first step's staleness, in steps
    check = arguments.epochs > 1 and round_.corpus.split("validation").rows > 0
    started = time.time() - progress["seconds"]
    stopped_by = "epochs"
    with live(Stage("train", "steps", steps, lambda: progress["step"])), command.stops_itself() as stopping:
        for epoch in range(len(progress["epochs"]), arguments.epochs):
            here = progress["epoch"]
            precision = mixed_precision(model) if arguments.mixed_precision else nullcontext()
            with precision:
                left = round_.with_stored(round_.batches(arguments, epoch, here["batches"]))
                for batches in groups(left, replicas):
                    rounds = round_.number % arguments.decay_rounds + progress["step"] / steps
                    optimizer.learning_rate = decayed(arguments.learning_rate, rounds / arguments.decay_rounds)
                    values, embeddings = step(batches)
                    if stored:
                        for batch, made in zip(batches, embeddings, strict=True):
                            stored.renew(batch, made)
                    triplets = int(sum(batch["valid"].numpy().sum() for batch in batches))
                    progress["rows"] += int(sum(batch["real"].numpy().sum() for batch in batches))
                    here["sums"] = [a + b for a, b in zip(here["sums"], values.tolist(), strict=True)]
                    here["triplets"] += triplets
                    here["batches"] += len(batches)
                    here["steps"] += 1
                    here["idle"] += triplets == 0
                    progress["step"] += 1
                    progress["seconds"] = time.time() - started
                    with log.as_default(step=steps_before + progress["step"]):
                        tf.summary.scalar("loss", values[0])
                        tf.summary.scalar("active_share", values[1] / max(triplets, 1))
                        if stored:
                            tf.summary.scalar("stored_rows_loss", values[4])
                        tf.summary.scalar("staleness", stale + progress["step"] - 1)
                    if stopping():
                        state.save()
                        command.stop()
                    state.save_when_due()
            done = summary_of_epoch(here)
            if not math.isfinite(done["loss"]):
                state.forget()
                loss = done["loss"]
                raise InputError(
                    f"the loss became {loss} in epoch {epoch}; no checkpoint was written. Lower --learning_rate."
                )
            if check:
                done["validation_map_at_r"] = validation_map(model, round_.corpus, round_.run_dir)
            best = max((e.get("validation_map_at_r", -1.0) for e in progress["epochs"]), default=-1.0)
            progress["epochs"].append(done)
            progress["epoch"] = dict(FRESH_EPOCH)
            print("  " + line_of_epoch(epoch, done))
            if done["active_share"] < arguments.min_active:
                stopped_by = "min_active"
            elif check and done["validation_map_at_r"] <= best:
                stopped_by = "validation"
            else:
                continue
            print(f"  the round ends after epoch {epoch + 1}: {END[stopped_by]}")
            break
    log.close()
    if logs.parent != train_dir:
        for path in logs.iterdir():
            storage.write_atomically(train_dir / "logs" / path.name, functools.partial(shutil.copyfile, path))
    epochs, rows = progress["epochs"], progress["rows"]
    per_pass = {scope: sum(kinds.values()) / manifest["rows"] for scope, kinds in manifest["counts"].items()}
    digest = records.checkpoint_digest(model)
    total = steps_before + progress["step"]
    records.write_json(
        train_dir / "metrics.json",
        {
            "format": METRICS_FORMAT, "round": round_.number, "mined_round": round_.mined, "device": device_name(),
            "replicas": replicas, "margin": margin, **shaping, "steps": progress["step"], "total_steps": total,
            "staleness": [stale, stale + progress["step"] - 1], "image_passes": rows,
            "triplets_per_image_pass": per_pass,
            "fresh_active_share": progress["fresh"], "epochs": epochs, "stopped_by": stopped_by,
            "seconds": round(time.time() - started, 2),
            "checkpoint_digest": round_.digest, "next_checkpoint_digest": digest,
        },
    )  # fmt: skip
    target = records.checkpoint_path(round_.run_dir, round_.number + 1)
    save_optimizer(optimizer, target.parent, digest)
    save_checkpoint(model, target)
    state.forget()
    command.note(round=round_.number, steps=progress["step"], loss=epochs[-1]["loss"], checkpoint_digest=digest)
    each = " + ".join(f"{value:.2f} of scope {scope}" for scope, value in per_pass.items())
    print(f"  {progress['step']} steps, {rows:,} image passes with {each} each, {time.time() - started:.0f} s")
    print(f"  {target}   next: python -m pipeline.mine --run_dir {round_.run_dir}")
    return 0


def groups(batches: Any, size: int) -> Iterator[list[Any]]:
    """Lists of `size` batches, one per device; the last may be shorter."""
    rest = iter(batches)
    while group := list(itertools.islice(rest, size)):
        yield group


def summary_of_epoch(sums: dict[str, Any]) -> dict[str, Any]:
    active, d_ap, d_an = (value / sums["triplets"] for value in sums["sums"][1:4])
    loss, stored = sums["sums"][0] / (sums["steps"] - sums["idle"]), sums["sums"][4] / sums["steps"]
    return {
        "loss": loss, "stored_rows_loss": stored, "active_share": active, "d_ap": d_ap, "d_an": d_an,
        "triplets": sums["triplets"],
    }  # fmt: skip


def line_of_epoch(epoch: int, done: dict[str, Any]) -> str:
    line = f"epoch {epoch + 1}: loss {done['loss']:.4f}, active {done['active_share']:.0%}, "
    line += f"d_ap {done['d_ap']:.3f}, d_an {done['d_an']:.3f}"
    if done["stored_rows_loss"]:
        line += f", loss of stored rows {done['stored_rows_loss']:.3f}"
    found = done.get("validation_map_at_r")
    return line if found is None else f"{line}, validation MAP@R {found:.3f}"


def main(argv: list[str]) -> int:
    parser = command.Parser("trainer.train", "--run_dir DIR [--init | --online] [options]", __doc__.splitlines()[0])
    parser.add_argument("--run_dir", type=storage.location, required=True, help="with the corpus and the rounds")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--init", action="store_true", help="write round 0's checkpoint with seeded weights")
    mode.add_argument("--online", action="store_true", help="warm up round 0's checkpoint on in-batch triplets")
    first = parser.add_argument_group("with --init")
    first.add_argument("--model", help="package.module:function (see trainer/models.py), or a .keras file")
    first.add_argument("--normalize", action="store_true", help="end the network with UnitNormalization")
    warm_up = parser.add_argument_group("with --online")
    warm_up.add_argument("--steps", type=int, help="of 128 rows (as many as --epochs over the train split have)")
    warm_up.add_argument("--margin", type=float, help="a mined round has its own (0.2)")
    mined = parser.add_argument_group("on a mined round")
    mined.add_argument("--decay_rounds", type=int, help="rounds over which the learning rate falls to a tenth (1)")
    mined.add_argument("--min_active", type=float, help="end when a smaller share of its triplets is active (0)")
    mined.add_argument("--newest", action="store_true", help="train the newest checkpoint, though another mined it")
    mined.add_argument("--loss", choices=list(losses.LOSSES), help="formulas in trainer/losses.py (triplet)")
    mined.add_argument("--stored_rows", type=int, help="mined embeddings that each image is also compared with (0)")
    mined.add_argument("--mixed_precision", action="store_true", help="layers in bfloat16 (GPUs from Ampere on)")
    mined.add_argument("--jit", action="store_true", help="compile the step with XLA")
    step = parser.add_argument_group("always")
    step.add_argument("--epochs", type=int, help="passes over a round's packs, at most; with --online, the corpus (1)")
    rows = f"images a batch and device (a pack's; of lone triplets, and with --online, {BATCH_ROWS})"
    step.add_argument("--batch_rows", type=int, help=rows)
    # On Omniglot small1, three rounds after a short warm-up ended at MAP@R .69 with 3e-3 and .71 with 1e-3.
    step.add_argument("--learning_rate", type=float, help="of Adam, at its peak (0.001; 0.003 with --online)")
    step.add_argument("--seed", type=int, default=0, help="of weights and batches (0)")
    command.add_options(parser)
    arguments = parser.parse_args(argv)
    command.begin(arguments)
    for name in ("steps", "margin", "epochs", "batch_rows", "learning_rate", "decay_rounds"):
        if getattr(arguments, name) is not None and getattr(arguments, name) <= 0:
            raise InputError(f"--{name} must be above 0; found {getattr(arguments, name)}")
    if (arguments.stored_rows or 0) < 0:
        raise InputError(f"--stored_rows must be 0 or more; found {arguments.stored_rows}")
    if not 0 <= (arguments.min_active or 0) < 1:
        raise InputError(f"--min_active must be in [0, 1); found {arguments.min_active}")
    online_only = ("steps", "margin")
    round_only = ("decay_rounds", "min_active", "newest", "loss", "stored_rows", "mixed_precision", "jit")
    for name in (*online_only, *round_only):
        if getattr(arguments, name) and (arguments.init or arguments.online != (name in online_only)):
            raise InputError(f"--{name} does nothing here; --help says what it goes with")
    if arguments.epochs and (arguments.init or arguments.steps):
        raise InputError(f"--epochs does nothing with {'--init' if arguments.init else '--steps'}; leave one out")
    arguments.margin = 0.2 if arguments.margin is None else arguments.margin
    arguments.epochs = arguments.epochs or 1
    arguments.decay_rounds = arguments.decay_rounds or 1
    arguments.stored_rows = arguments.stored_rows or 0
    arguments.min_active = arguments.min_active or 0.0
    arguments.loss = arguments.loss or "triplet"
    if arguments.learning_rate is None:
        arguments.learning_rate = 3e-3 if arguments.online else 1e-3
    for name in ("model", "normalize"):
        if getattr(arguments, name) and not arguments.init:
            raise InputError(f"--{name} goes with --init: later rounds take the network from their checkpoint")
    corpus = records.open_corpus(arguments.run_dir)
    if arguments.jit and "text" in corpus.features:
        raise InputError(f"--jit compiles no strings, and {corpus.directory} holds texts. Train without it.")
    with command.hold(arguments.run_dir, "train"):
        return (init if arguments.init else online if arguments.online else train)(arguments, corpus)


if __name__ == "__main__":
    command.run(main)
