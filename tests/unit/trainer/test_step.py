"""A step against the plain triplet loss of three separate towers; on two devices, against one."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from trainer.step import SUMS, Step

ROWS, TRIPLETS = 24, 60


def network():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(6, 3, activation="tanh")(inputs)
    x = keras.layers.Dense(5)(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.UnitNormalization()(x))


def batch(seed=0, rows=ROWS, triplets=TRIPLETS, memory=0):
    """memory: how many rows it is compared with; the first row has no negatives among them, the second no positives."""
    rng = np.random.default_rng(seed)
    listed = rng.integers(0, rows, (triplets, 3))
    found = {"inputs": rng.standard_normal((rows, 8, 8, 1)).astype(np.float32), "triplets": listed.astype(np.int32)}
    if memory:
        vectors = rng.standard_normal((memory, 5)).astype(np.float32)
        label, of_memory = rng.integers(0, 4, rows), rng.integers(0, 4, memory)
        positive, pair = label[:, None] == of_memory, (label[:, None] == label) & ~np.eye(rows, dtype=bool)
        negative = ~positive
        negative[0], positive[1], pair[1] = False, False, False
        found["memory"] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        found |= {"memory_positive": positive, "memory_negative": negative, "batch_positive": pair}
    return {name: tf.constant(value) for name, value in found.items()}


def moved(model, batches, strategy=None):
    """The change of every variable by one step of plain gradient descent, and what the step returns."""
    before = [variable.numpy() for variable in model.variables]
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build(model.trainable_variables)
    spec = {name: tf.TensorSpec([None, *value.shape[1:]], value.dtype) for name, value in batches[0].items()}
    if "batch_positive" in spec:
        spec["batch_positive"] = tf.TensorSpec([None, None], tf.bool)
    values, embeddings = Step(model, optimizer, "triplet", 0.2, strategy, spec)(batches)
    assert [len(part) for part in embeddings] == [len(given["inputs"]) for given in batches]
    return [variable.numpy() - old for variable, old in zip(model.variables, before, strict=True)], values


def test_one_step_is_that_of_three_towers():
    model, given = network(), batch()
    sides = tf.gather(given["inputs"], given["triplets"])  # [t, 3, 8, 8, 1]
    with tf.GradientTape() as tape:
        anchor, positive, negative = (model(sides[:, k], training=True) for k in range(3))
        d_ap = tf.reduce_sum((anchor - positive) ** 2, axis=1)
        d_an = tf.reduce_sum((anchor - negative) ** 2, axis=1)
        loss = tf.reduce_mean(tf.maximum(0.0, 0.2 + d_ap - d_an))
    expected = tape.gradient(loss, model.trainable_variables)
    found, values = moved(model, [given])
    for gradient, change in zip(expected, found, strict=True):
        np.testing.assert_allclose(-change, gradient, atol=1e-5)
    active = np.sum(0.2 + d_ap - d_an > 0)
    assert list(values) == list(SUMS)
    np.testing.assert_allclose(list(values.values()), [loss, active, np.sum(d_ap), np.sum(d_an), 0.0], rtol=1e-5)


def test_the_memory_adds_its_loss_and_a_batch_without_triplets_learns_from_it():
    plain, without = moved(network(), [batch()])
    both, values = moved(network(), [batch(memory=40)])
    alone, of_memory = moved(network(), [batch(triplets=0, memory=40)])
    assert without["memory_loss"] == 0 < values["memory_loss"] and of_memory["loss"] == 0 < of_memory["memory_loss"]
    assert any(np.abs(one - other).max() > 1e-3 for one, other in zip(plain, both, strict=True))
    assert np.abs(alone[0]).max() > 0


PREPARED = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import numpy as np
import test_step as t
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def on_two(batches):
    with two.scope():
        model = t.network()
    return t.moved(model, batches, two)

def joined(first, second):
    return {{"inputs": tf.concat([first["inputs"], second["inputs"]], axis=0),
            "triplets": tf.concat([first["triplets"], second["triplets"] + t.ROWS], axis=0)}}

def alike(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(list(one[1].values()), list(other[1].values()), rtol=1e-5)

# The mean is over all 92 triplets. A device without a batch changes nothing.
first, second = t.batch(0), t.batch(1, rows=20, triplets=32)
alike(on_two([first, second]), t.moved(t.network(), [joined(first, second)]))
alike(on_two([first]), t.moved(t.network(), [first]))

# The memory's losses are weighted by rows, where a batch has no triplets too.
for triplets in (t.TRIPLETS, 0):
    batches = [t.batch(0, triplets=triplets, memory=40), t.batch(1, rows=20, triplets=32, memory=40)]
    bare = [{{name: b[name] for name in ("inputs", "triplets")}} for b in batches]
    found = on_two(batches)
    with_memory = [t.moved(t.network(), [b]) for b in batches]
    without = [t.moved(t.network(), [b]) for b in bare]
    of_triplets, of_rows = triplets / (triplets + 32), t.ROWS / (t.ROWS + 20)
    for one, other, bare_one, bare_other, both in zip(
        *(w[0] for w in with_memory), *(w[0] for w in without), found[0], strict=True
    ):
        expected = of_triplets * bare_one + (1 - of_triplets) * bare_other
        expected += of_rows * (one - bare_one) + (1 - of_rows) * (other - bare_other)
        np.testing.assert_allclose(expected, both, atol=1e-5)
    losses = [w[1]["memory_loss"] for w in with_memory]
    assert np.isclose(of_rows * losses[0] + (1 - of_rows) * losses[1], found[1]["memory_loss"])
"""


def test_two_devices_give_the_step_of_one():
    """In a process of its own: a machine's CPU can be cut into two devices before TensorFlow has begun only."""
    done = subprocess.run([sys.executable, "-c", PREPARED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
