"""Training and embedding on the device there is: what reading, memory and looking at losses cost beside the network.

    python -m benchmarks.gpu_trainer

Part of `make bench-gpu`. An untrained network of EfficientNet-B0's size, on JPEG images of 224 pixels that are
generated here. Needs TensorFlow and no internet; on a CPU it takes some minutes.
"""

import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from benchmarks.runs import IN_PROCESS, ingest_source
from benchmarks.table import Row, finish, paired, show
from pipeline.corpus.corpus import Corpus
from pipeline.embedding.embedder import BATCH, Embedder
from pipeline.embedding.machine import device_name
from pipeline.embedding.network import load_network
from pipeline.files.layout import Run
from pipeline.mining.job import mine
from pipeline.mining.manifest import open_triplets
from pipeline.mining.options import MiningOptions
from pipeline.packs.packs import PackOptions
from pipeline.triplets.rows import Block
from trainer.batches import triplet_batches
from trainer.first import write_first
from trainer.loop import READ_SECONDS, train_newest
from trainer.memory import Memory
from trainer.options import InitOptions, TrainOptions
from trainer.step import Step, strategy_for

SIDE, CLASSES = 224, 16
MEMORY = (1_000_000, 128, 10_000)  # rows, dimensions, how many a batch is compared with
GPU = bool(tf.config.list_physical_devices("GPU"))
IMAGES, BATCH_ROWS, REPEAT = (4096, 128, 3) if GPU else (3 * BATCH, 16, 1)


def efficientnet(input_shape: tuple[int, ...]) -> keras.Model:
    """For trainer.init --model."""
    body = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=input_shape, pooling="avg")
    x = keras.layers.Dense(MEMORY[1])(body.output)
    return keras.Model(body.input, keras.layers.UnitNormalization()(x))


def prepared(scratch: Path) -> Path:
    """A run directory with round 0 mined. Images of a class are one drawing with noise, so that JPEG has what to do."""
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        folder, drawing = scratch / "images" / f"{label:02d}", rng.integers(0, 256, (14, 14, 3), np.uint8)
        folder.mkdir(parents=True)
        smooth = np.asarray(Image.fromarray(drawing).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
        for number in range(IMAGES // CLASSES):
            noisy = np.clip(smooth + rng.integers(-40, 41, smooth.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{number:04d}.jpg", quality=90)
    run_dir = scratch / "run"
    ingest_source(run_dir, f"images:{scratch / 'images'}", validation_share=0.0, eval_share=0.0)
    write_first(run_dir, InitOptions(model=f"{__spec__.name}:efficientnet", max_side=SIDE))
    mine(run_dir, MiningOptions(margin=1.0), PackOptions(pack_rows=BATCH_ROWS), IN_PROCESS)
    return run_dir


class Steps:
    """Steps on the round's batches. memory: rows, dimensions, how many a batch is compared with."""

    def __init__(self, run_dir: Path, memory: tuple[int, int, int] | None = None):
        self.round, self.corpus = Run(run_dir).round(0), Corpus.open(run_dir)
        self.manifest = open_triplets(self.round, self.corpus)
        self.network = load_network(self.round.checkpoint)
        self.memory = memory and of_random_rows(*memory)
        self.step = Step(
            self.network.model, keras.optimizers.Adam(1e-4), "triplet", 1.0, strategy_for([]),
            self.batches().element_spec, memory=self.memory,
        )  # fmt: skip

    def batches(self) -> Any:
        inputs = self.network.inputs(self.corpus.feature)
        return triplet_batches(self.round.triplets, self.manifest, inputs, BATCH_ROWS, 0, memory=self.memory)

    def take(self, batches: Any) -> None:
        for batch in batches:
            values = self.step([batch])
        values.numpy()  # what was asked for is done


def of_random_rows(rows: int, dim: int, most: int) -> Memory:
    vectors = np.random.default_rng(0).standard_normal((rows, dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    split = SimpleNamespace(rows=rows, shards=[], first_rows=np.arange(0, rows + 1, 10))
    store = SimpleNamespace(split=split, block=lambda row: Block(row=row, embedding=vectors))
    return Memory(store, most, 0)  # type: ignore[arg-type]


def reading(run_dir: Path) -> Row:
    steps = Steps(run_dir)
    there = list(steps.batches().take(64 if GPU else 4))
    if GPU:  # on the device already
        there = [{name: tf.identity(value) for name, value in batch.items()} for batch in there]
    steps.take(there[:2])
    ratio, held, read = paired(
        lambda: steps.take(there), lambda: steps.take(steps.batches().take(len(there))), REPEAT
    )  # fmt: skip
    note = f"{read / len(there):.3f} s a step of {BATCH_ROWS} images, {held / len(there):.3f} s without reading"
    return Row(what="steps a second from files over those on data that is there", value=ratio, bound=0.9,
               at_least=True, note=note)  # fmt: skip


def memory(run_dir: Path) -> Row:
    without, with_memory = Steps(run_dir), Steps(run_dir, MEMORY)
    plain, more = list(without.batches())[:4], list(with_memory.batches())[:4]
    without.take(plain[:2])
    with_memory.take(more[:2])
    ratio, one, other = paired(lambda: with_memory.take(more), lambda: without.take(plain), REPEAT)
    return Row(what="a step with a memory of 1,000,000 x 128 over one without", value=ratio, bound=1.3 if GPU else None,
               note=f"{one / 4:.3f} s and {other / 4:.3f} s")  # fmt: skip


def embedding(run_dir: Path) -> Row:
    corpus, network = Corpus.open(run_dir), load_network(Run(run_dir).round(0).checkpoint)
    split, embedder = corpus.split("train"), Embedder(network, corpus.feature)
    forward = tf.function(lambda images: network.model(images, training=False), autograph=False)
    shape = (BATCH, SIDE, SIDE, 3)
    images = tf.random.stateless_uniform(shape, [0, 0], maxval=255.0)

    def bare() -> None:
        for _ in range(-(-split.rows // BATCH)):
            found = forward(images)
        found.numpy()

    bare()
    ratio, one, other = paired(lambda: embedder.split(split), bare, REPEAT)
    note = f"{split.rows} images in {one:.1f} s and {other:.1f} s"
    return Row(what="embedding from files over the bare forward pass", value=ratio, bound=1.2, note=note)


def reads(run_dir: Path) -> Row:
    """Copies from the device to the host in a whole training, by TensorFlow's profiler."""
    profile = run_dir.with_name("profile")
    tf.profiler.experimental.start(str(profile))
    started = time.perf_counter()
    metrics = train_newest(run_dir, TrainOptions(epochs=3, learning_rate=1e-4), save_seconds=1e9).metrics
    took = time.perf_counter() - started
    tf.profiler.experimental.stop()
    [trace] = profile.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    copies = sum("MemcpyD2H" in str(event.get("name")) for event in events)
    variables = len(load_network(Run(run_dir).round(0).checkpoint).model.variables)
    looks = took / READ_SECONDS + 3
    assert metrics
    note = f"{copies} copies in {metrics.steps} steps; saving at the end copies some {3 * variables} variables"
    return Row(what="reads a log interval, by a profile", value=max(0, copies - 3 * variables) / looks, bound=1.0,
               note=note)  # fmt: skip


TWO_DEVICES = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np
from trainer.step import Step
def moved(strategy, batches):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8), keras.layers.UnitNormalization()])
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build(model.trainable_variables)
    before = model.get_weights()
    spec = {name: tf.TensorSpec([None, *value.shape[1:]], value.dtype) for name, value in batches[0].items()}
    Step(model, optimizer, "triplet", 0.2, strategy, spec)(batches)
    return [new - old for new, old in zip(model.get_weights(), before)]
rng = np.random.default_rng(0)
first, second = ({"inputs": tf.constant(rng.standard_normal((24, 16)), tf.float32),
                  "triplets": tf.constant(rng.integers(0, 24, (n, 3)), tf.int32)} for n in (60, 32))
joined = {"inputs": tf.concat([first["inputs"], second["inputs"]], 0),
          "triplets": tf.concat([first["triplets"], second["triplets"] + 24], 0)}
two = moved(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), [first, second])
one = moved(tf.distribute.get_strategy(), [joined])
print(max(np.abs(a - b).max() for a, b in zip(one, two)))
"""


def two_devices() -> Row:
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES], capture_output=True, text=True, check=True)
    return Row(what="two logical devices: largest difference of a gradient from one's",
               value=float(done.stdout.split()[-1]), bound=1e-6, note="a CPU cut in two")  # fmt: skip


def main() -> int:
    print(f"{device_name()}, TensorFlow {tf.__version__}, Keras {keras.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        run_dir, rows = prepared(scratch), []
        for measured in (reading, memory, embedding, reads):
            if measured is reads and not GPU:
                print("reads a log interval: from a CPU nothing is copied; not measured")
                continue
            rows.append(measured(run_dir))
            show(rows[-1])
        rows.append(two_devices())
        show(rows[-1])
    return finish("gpu_trainer", rows, device=device_name())


if __name__ == "__main__":
    sys.exit(main())
