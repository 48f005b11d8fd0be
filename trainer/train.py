"""Train on the newest mined round with the plain triplet loss; write the next round's checkpoint.

python -m trainer.train --run_dir D --init              round 0's checkpoint, seeded weights
python -m trainer.train --run_dir D --online --steps N  the warm-up of round 0's checkpoint, in-batch
python -m trainer.train --run_dir D                     the newest mined round
"""

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import command, records
from pipeline.embed import Embedder, network_input_shape
from pipeline.records import Corpus, InputError, import_tensorflow
from pipeline.selection import draw_key
from trainer import losses, models
from trainer.data import online_batches, triplet_batches, usable_classes
from trainer.state import Resumable, restore_optimizer, save_optimizer

tf = import_tensorflow()
import keras  # noqa: E402

SETTLING_BATCHES = 40
WARMUP_FORMAT = "triplet-miner-warmup/1"
FRESH_BATCHES = 8  # how many batches tell the active share before training


def device_name() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return f"CPU ({os.cpu_count()} cores)"
    return ", ".join(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus)


def save_checkpoint(model: Any, path: Path) -> str:
    """Writes a .keras file atomically. Returns its digest."""
    records.write_atomically(path, model.save)
    return records.checkpoint_digest(model)


def first_model(arguments: argparse.Namespace, corpus: Corpus) -> Any:
    """A network with seeded weights, checked to be one that can be mined with."""
    spec = next(iter(corpus.features.values()))
    build = models.by_path(arguments.model) if arguments.model else models.default_for(spec["kind"])
    keras.utils.set_random_seed(arguments.seed)
    model = build(models.example_shape(spec))
    if not isinstance(model, keras.Model):
        raise InputError(f"--model {arguments.model} returned a {type(model).__name__}, expected a keras.Model.")
    name = arguments.model or build.__name__
    shape = network_input_shape(model, corpus.features, name)
    settle_statistics(model, corpus, shape, arguments.seed)
    with tempfile.TemporaryDirectory(dir=arguments.run_dir, prefix=".first.tmp") as scratch:
        path = Path(scratch, "model.keras")
        model.save(path)
        Embedder(path, corpus)(corpus.split("train").read(np.arange(1)))  # better refused now than when mining
    print(f"first checkpoint: {name}, {model.count_params():,} weights, seed {arguments.seed}")
    return model


def init(arguments: argparse.Namespace, corpus: Corpus) -> int:
    """Writes round 0's checkpoint with seeded weights."""
    path = records.checkpoint_path(arguments.run_dir, 0)
    if path.exists():
        if arguments.model:
            raise InputError(f"{path} is there already. Remove {path.parent} to choose another --model.")
        print(f"{path} is there already; nothing to do")
        return 0
    digest = save_checkpoint(first_model(arguments, corpus), path)
    print(f"  {path} ({digest[:12]})   next: python -m pipeline.mine --run_dir {arguments.run_dir}")
    return 0


def settle_statistics(model: Any, corpus: Corpus, shape: tuple[int, ...], seed: int) -> None:
    """Lets batch normalisation see the corpus before anything is mined.

    With the moving statistics that Keras starts from, an untrained network maps all rows to nearly one point in
    inference mode (mean distance .01 on digits), and round 0 mines noise.
    """
    if not model.non_trainable_variables:
        return
    for inputs, _ in online_batches(corpus, shape, 32, 4, SETTLING_BATCHES, seed):
        model(inputs, training=True)


def progress_bar(total: int, label: str, done: int = 0) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    progress.add_task(label, total=total, completed=done)
    return progress


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
    classes = min(max(2, arguments.batch_rows // 4), len(usable_classes(corpus)))
    steps = arguments.steps or math.ceil(corpus.split("train").rows / (4 * classes))
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
    @tf.function(input_signature=[tf.TensorSpec([None, *shape]), tf.TensorSpec([None], tf.int64)])
    def step(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = losses.triplet_semihard_loss(labels, model(inputs, training=True), arguments.margin)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    print(f"warm-up on {device_name()}: {steps} steps of {classes} classes x 4 rows")
    if resumed:
        print(f"  goes on at step {len(seen)}")
    started = time.time() - progress["seconds"]
    with progress_bar(steps, "warm-up", len(seen)) as bar, command.stops_itself() as asked_to_stop:
        for batch in online_batches(corpus, shape, classes, 4, steps, arguments.seed, first_step=len(seen)):
            optimizer.learning_rate = decayed(arguments.learning_rate, len(seen) / steps)
            seen.append(float(step(*batch)))
            bar.advance(bar.task_ids[0])
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
    """From the full rate to a tenth of it along half a cosine, within a round: what a round leaves is mined with.

    Loshchilov and Hutter, SGDR (https://arxiv.org/abs/1608.03983), a restart a round.
    """
    return learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def fresh_active_share(model: Any, batches: Any, margin: float) -> float:
    """Which share of just-mined triplets has a loss above 0 in training mode.

    Distances were mined in inference mode; batch normalisation and dropout make the two differ. What the
    passes do to the moving statistics is undone.
    """
    state = [variable.numpy() for variable in model.non_trainable_variables]
    active = total = 0
    for batch in batches.take(FRESH_BATCHES):
        d_ap, d_an = losses.triplet_distances(model(batch["inputs"], training=True), batch["triplets"])
        active += int(tf.reduce_sum(tf.cast(margin + d_ap - d_an > 0, tf.int32)))
        total += int(tf.size(d_ap))
    for variable, value in zip(model.non_trainable_variables, state, strict=True):
        variable.assign(value)
    return active / total


def train(arguments: argparse.Namespace, corpus: Corpus) -> int:
    """Trains the newest mined round."""
    run_dir = arguments.run_dir
    number = records.newest_round(run_dir, records.manifest_path)
    if number is None:
        raise InputError(f"nothing is mined in {run_dir} yet. Next: python -m pipeline.mine --run_dir {run_dir}")
    target = records.checkpoint_path(run_dir, number + 1)
    if target.exists():
        print(f"round {number} is trained already: {target}\n  next: python -m pipeline.mine --run_dir {run_dir}")
        return 0
    manifest = records.open_triplets(run_dir, number, corpus)
    triplet_dir = records.manifest_path(run_dir, number).parent
    if arguments.batch_rows < manifest["pack_rows"]:
        raise InputError(f"--batch_rows {arguments.batch_rows} is less than a pack's {manifest['pack_rows']} rows")
    source = records.checkpoint_path(run_dir, number)
    model = records.load_checkpoint(source)
    digest = records.checkpoint_digest(model)
    if digest != manifest["checkpoint_digest"]:
        raise InputError(
            f"{source} is {digest[:12]}, round {number} was mined with {manifest['checkpoint_digest'][:12]}. "
            f"Put that checkpoint back, or remove {triplet_dir} and mine again."
        )
    shape = network_input_shape(model, corpus.features, source)
    margin = manifest["margin"]
    optimizer = keras.optimizers.Adam(arguments.learning_rate)
    restore_optimizer(optimizer, model, source.parent, digest)
    keras.utils.set_random_seed(arguments.seed)
    progress: dict[str, Any] = {
        "step": 0, "rows": 0, "seconds": 0.0, "fresh": None,
        "epochs": [], "batches": 0, "sums": [0.0] * 4, "triplets": 0,
    }  # fmt: skip
    names = ("epochs", "batch_rows", "learning_rate", "seed")
    key = [manifest["triplet_digest"], digest, {name: getattr(arguments, name) for name in names}]
    train_dir = records.round_dir(run_dir, number) / "train"
    state = Resumable(train_dir / "state.npz", key, model, optimizer, progress)
    resumed = state.restore()
    log = tf.summary.create_file_writer(str(train_dir / "logs"))

    @tf.function(input_signature=[tf.TensorSpec([None, *shape]), tf.TensorSpec([None, 3], tf.int32)])  # as above
    def step(inputs: Any, triplets: Any) -> Any:
        with tf.GradientTape() as tape:
            d_ap, d_an = losses.triplet_distances(model(inputs, training=True), triplets)
            loss = losses.triplet_loss(d_ap, d_an, margin)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        active = tf.reduce_sum(tf.cast(margin + d_ap - d_an > 0, tf.float32))
        return tf.stack([loss, active, tf.reduce_sum(d_ap), tf.reduce_sum(d_an)])

    def batches(epoch: int, first_batch: int = 0) -> Any:
        seed = int(draw_key(arguments.seed, number, f"epoch/{epoch}")) & 0x7FFFFFFF
        return triplet_batches(triplet_dir, manifest, shape, arguments.batch_rows, seed, first_batch)

    print(
        f"training round {number} on {device_name()}: {manifest['triplets']:,} triplets in {manifest['packs']:,} packs"
    )
    if progress["fresh"] is None:
        progress["fresh"] = fresh_active_share(model, batches(0), margin)
    print(f"  active when mined: all; in training mode: {progress['fresh']:.0%}")
    if resumed:
        print(f"  goes on at step {progress['step']}")
    steps = arguments.epochs * math.ceil(manifest["packs"] / max(1, arguments.batch_rows // manifest["pack_rows"]))
    started = time.time() - progress["seconds"]
    with progress_bar(steps, f"round {number}", progress["step"]) as bar, command.stops_itself() as asked_to_stop:
        for epoch in range(len(progress["epochs"]), arguments.epochs):
            for batch in batches(epoch, progress["batches"]):
                optimizer.learning_rate = decayed(arguments.learning_rate, progress["step"] / steps)
                values = step(batch["inputs"], batch["triplets"]).numpy().astype(float)
                progress["sums"] = [a + b for a, b in zip(progress["sums"], values.tolist(), strict=True)]
                progress["triplets"] += len(batch["triplets"])
                progress["rows"] += len(batch["inputs"])
                progress["batches"] += 1
                progress["step"] += 1
                progress["seconds"] = time.time() - started
                bar.advance(bar.task_ids[0])
                with log.as_default(step=progress["step"]):
                    tf.summary.scalar("loss", values[0])
                    tf.summary.scalar("active_share", values[1] / len(batch["triplets"]))
                if asked_to_stop():
                    state.save()
                    command.stop()
                state.save_when_due()
            loss = progress["sums"][0] / progress["batches"]
            active, d_ap, d_an = (value / progress["triplets"] for value in progress["sums"][1:])
            if not math.isfinite(loss):
                state.forget()
                raise InputError(
                    f"the loss became {loss} in epoch {epoch}; no checkpoint was written. Lower --learning_rate."
                )
            progress["epochs"].append(
                {"loss": loss, "active_share": active, "d_ap": d_ap, "d_an": d_an, "triplets": progress["triplets"]}
            )
            progress |= {"batches": 0, "sums": [0.0] * 4, "triplets": 0}
            print(f"  epoch {epoch + 1}: loss {loss:.4f}, active {active:.0%}, d_ap {d_ap:.3f}, d_an {d_an:.3f}")
    log.close()
    next_digest = records.checkpoint_digest(model)
    records.write_json(
        train_dir / "metrics.json",
        {
            "format": "triplet-miner-metrics/1", "round": number, "device": device_name(), "margin": margin,
            "steps": progress["step"], "image_passes": progress["rows"], "fresh_active_share": progress["fresh"],
            "epochs": progress["epochs"], "learning_rate": arguments.learning_rate,
            "seconds": round(time.time() - started, 2),
            "checkpoint_digest": digest, "next_checkpoint_digest": next_digest,
        },
    )  # fmt: skip
    save_optimizer(optimizer, target.parent, next_digest)
    save_checkpoint(model, target)
    state.forget()
    command.note(round=number, steps=progress["step"], loss=loss, checkpoint_digest=next_digest)
    epochs, rows, done = progress["epochs"], progress["rows"], progress["step"]
    per_pass = sum(epoch["triplets"] for epoch in epochs) / rows
    print(f"  {done} steps, {rows:,} image passes, {per_pass:.2f} triplets each, {time.time() - started:.0f} s")
    print(f"  {target}   next: python -m pipeline.mine --run_dir {run_dir}")
    return 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.train", description=__doc__.splitlines()[0])
    parser.add_argument("--run_dir", type=Path, required=True)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--init", action="store_true", help="write round 0's checkpoint with seeded weights")
    mode.add_argument("--online", action="store_true", help="warm up round 0's checkpoint on in-batch triplets")
    parser.add_argument("--model", help="with --init: package.module:function, see trainer/models.py")
    parser.add_argument("--steps", type=int, help="with --online (one pass over the train split)")
    parser.add_argument("--margin", type=float, help="with --online; a mined round has its own (0.2)")
    parser.add_argument("--epochs", type=int, help="passes over a mined round's packs (1)")
    parser.add_argument("--batch_rows", type=int, default=128, help="images a batch (128)")
    # On Omniglot small1, three rounds after a short warm-up ended at MAP@R .69 with 3e-3 and .71 with 1e-3.
    parser.add_argument("--learning_rate", type=float, help="of Adam, at its peak (0.001; 0.003 with --online)")
    parser.add_argument("--seed", type=int, default=0)
    command.add_options(parser)
    arguments = parser.parse_args(argv)
    command.begin(arguments)
    for name in ("steps", "margin", "epochs", "batch_rows", "learning_rate"):
        if getattr(arguments, name) is not None and getattr(arguments, name) <= 0:
            raise InputError(f"--{name} must be above 0; found {getattr(arguments, name)}")
    for name, fits in (("steps", arguments.online), ("margin", arguments.online), ("epochs", not arguments.online)):
        if getattr(arguments, name) is not None and (not fits or arguments.init):
            raise InputError(f"--{name} does nothing here; --help says what it goes with")
    arguments.margin = 0.2 if arguments.margin is None else arguments.margin
    arguments.epochs = arguments.epochs or 1
    if arguments.learning_rate is None:
        arguments.learning_rate = 3e-3 if arguments.online else 1e-3
    if arguments.model and not arguments.init:
        raise InputError("--model goes with --init: later rounds take the network from their checkpoint")
    corpus = records.open_corpus(arguments.run_dir)
    with command.hold(arguments.run_dir, "train"):
        return (init if arguments.init else online if arguments.online else train)(arguments, corpus)


if __name__ == "__main__":
    command.run(main)
