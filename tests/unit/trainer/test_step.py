"""A step against the plain triplet loss of three separate towers; on two devices, against one."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.triplets.rows import Block
from trainer import losses
from trainer.kinds import Kinds
from trainer.memory import Memory
from trainer.step import SUMS, Step, scaled_for

ROWS, TRIPLETS = 24, 60


def network(policy="float32"):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(6, 3, activation="tanh", dtype=policy)(inputs)
    x = keras.layers.Dense(5, dtype=policy)(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.UnitNormalization(dtype="float32")(x))


def batch(seed=0, rows=ROWS, triplets=TRIPLETS):
    """Rows of the corpus from 100 * seed on."""
    rng = np.random.default_rng(seed)
    listed, row = rng.integers(0, rows, (triplets, 3)), 100 * seed + rng.choice(60, rows, replace=False)
    found = {"inputs": rng.standard_normal((rows, 8, 8, 1)).astype(np.float32), "triplets": listed.astype(np.int32)}
    return {name: tf.constant(value) for name, value in (found | {"row": row}).items()}


def memory_of(most):
    """Of 200 rows in 10 classes; the first class has one row, which has no positives."""
    label = np.concatenate([[0], np.repeat(np.arange(1, 11), 20)])[:200]
    split = SimpleNamespace(rows=200, first_rows=np.searchsorted(label, np.arange(12)))
    vectors = np.random.default_rng(9).standard_normal((200, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    block = lambda rows: Block(row=rows, embedding=vectors[rows])  # noqa: E731
    return Memory(SimpleNamespace(split=split, files=0, block=block), most, 0)


def moved(model, batches, strategy=None, most=0, tries=1, loss="triplet", **settings):
    """The change of every variable by one step of plain gradient descent, what the step returns, and the memory of at
    most so many rows after it."""
    before = [variable.numpy() for variable in model.variables]
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        optimizer = scaled_for(model, keras.optimizers.SGD(1.0))
        optimizer.build(model.trainable_variables)
        memory = memory_of(most) if most else None
    if memory:
        batches = [given | memory.of_batch(given["row"]) for given in batches]
    spec = {name: tf.TensorSpec([None, *value.shape[1:]], value.dtype) for name, value in batches[0].items()}
    step = Step(model, optimizer, loss, 0.2, strategy, spec, memory=memory, **settings)
    for _ in range(tries):
        values = dict(zip(SUMS, step(batches).numpy().tolist(), strict=True))
        changes = [variable.numpy() - old for variable, old in zip(model.variables, before, strict=True)]
        if any(change.any() for change in changes):
            break
    return changes, values, memory and memory.embedding.numpy()


def test_one_step_is_that_of_three_towers():
    model, given = network(), batch()
    sides = tf.gather(given["inputs"], given["triplets"])  # [t, 3, 8, 8, 1]
    with tf.GradientTape() as tape:
        anchor, positive, negative = (model(sides[:, k], training=True) for k in range(3))
        d_ap = tf.reduce_sum((anchor - positive) ** 2, axis=1)
        d_an = tf.reduce_sum((anchor - negative) ** 2, axis=1)
        loss = tf.reduce_mean(tf.maximum(0.0, 0.2 + d_ap - d_an))
    expected = tape.gradient(loss, model.trainable_variables)
    found, values, _ = moved(model, [given])
    for gradient, change in zip(expected, found, strict=True):
        np.testing.assert_allclose(-change, gradient, atol=1e-5)
    active = np.sum(0.2 + d_ap - d_an > 0)
    assert list(values) == list(SUMS)
    np.testing.assert_allclose(list(values.values()), [loss, active, np.sum(d_ap), np.sum(d_an), 0.0], rtol=1e-5)


@pytest.mark.parametrize("most", [40, 200])
def test_the_memory_adds_its_loss_and_a_batch_without_triplets_learns_from_it(most):
    plain, without, _ = moved(network(), [batch()])
    both, values, _ = moved(network(), [batch()], most=most)
    alone, of_memory, _ = moved(network(), [batch(triplets=0)], most=most)
    assert without["memory_loss"] == 0 < values["memory_loss"] and of_memory["loss"] == 0 < of_memory["memory_loss"]
    assert any(np.abs(one - other).max() > 1e-3 for one, other in zip(plain, both, strict=True))
    assert np.abs(alone[0]).max() > 0


def test_the_memory_is_compared_with_at_the_temperature_that_is_given():
    model, given = network(), batch(triplets=0)
    embeddings, memory = model(given["inputs"], training=True), memory_of(200)
    compared = memory.compared(given | memory.of_batch(given["row"]))
    _, values, _ = moved(model, [given], most=200, temperature=0.5)
    np.testing.assert_allclose(values["memory_loss"], losses.memory_loss(embeddings, *compared, 0.5), rtol=1e-5)


def test_a_step_renews_the_memory_of_its_rows():
    model, given = network(), batch()
    made, before = model(given["inputs"], training=True).numpy(), memory_of(200).embedding.numpy()
    _, _, after = moved(model, [given], most=200)
    np.testing.assert_allclose(after[given["row"]], made, atol=1e-6)
    others = np.setdiff1d(np.arange(200), given["row"])
    np.testing.assert_array_equal(after[others], before[others])


def test_triplets_are_picked_anew_by_what_may_be_one_in_mining():
    """By loops over pairs: the nearest negative beyond the positive, else the farthest; no copy, none of a group."""
    model, given = network(), batch(triplets=0)
    row, rng = given["row"].numpy(), np.random.default_rng(4)
    contents, groups = rng.integers(0, 40, 60), rng.integers(-1, 3, 60)
    label, content, group = row // 6, contents[row], groups[row]
    d = 2 - 2 * (embeddings := model(given["inputs"], training=True).numpy()) @ embeddings.T
    each, pairs = [], 0
    for a in range(ROWS):
        other = (label != label[a]) & (content != content[a]) & ((group != group[a]) | (group[a] < 0))
        for p in np.flatnonzero((label == label[a]) & (content != content[a])):
            beyond = d[a][other & (d[a] > d[a, p])]
            each.append(max(0.0, 0.2 + d[a, p] - (beyond.min() if len(beyond) else d[a][other].max())))
            pairs += 1
    kinds = Kinds(np.arange(0, 61, 6), contents, groups)
    changes, values, _ = moved(model, [given], loss="semi-hard", kinds=kinds)
    assert pairs > 20 and np.abs(changes[0]).max() > 0
    np.testing.assert_allclose(values["loss"], np.mean(each), rtol=1e-4)


def test_half_precision_learns_what_single_precision_does():
    """By the model's own policy: sums are taken in float32, and the loss is scaled in float16."""
    expected, values, _ = moved(network(), [batch()])
    for policy, scales in (("mixed_float16", True), ("mixed_bfloat16", False)):
        optimizer = scaled_for(network(policy), keras.optimizers.SGD())
        assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer) == scales
        found, halved, _ = moved(network(policy), [batch()], tries=20)  # the loss' scale is halved until it fits
        for one, other in zip(expected, found, strict=True):
            assert np.linalg.norm(one - other) < 0.03 * np.linalg.norm(one), policy
        np.testing.assert_allclose(list(halved.values()), list(values.values()), rtol=0.03)


PREPARED = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import numpy as np
import test_step as t
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def on_two(batches, most=0):
    with two.scope():
        model = t.network()
    return t.moved(model, batches, two, most)

def joined(first, second):
    return {{"inputs": tf.concat([first["inputs"], second["inputs"]], axis=0),
            "triplets": tf.concat([first["triplets"], second["triplets"] + t.ROWS], axis=0),
            "row": tf.concat([first["row"], second["row"]], axis=0)}}

def alike(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(list(one[1].values()), list(other[1].values()), rtol=1e-5)

# The mean is over all 92 triplets. A device without a batch changes nothing.
first, second = t.batch(0), t.batch(1, rows=20, triplets=32)
alike(on_two([first, second]), t.moved(t.network(), [joined(first, second)]))
alike(on_two([first]), t.moved(t.network(), [first]))

# The memory's losses are weighted by rows, where a batch has no triplets too. Each device's memory has both's rows.
for triplets, most in ((t.TRIPLETS, 40), (0, 200)):
    batches = [t.batch(0, triplets=triplets), t.batch(1, rows=20, triplets=32)]
    found = on_two(batches, most)
    with_memory = [t.moved(t.network(), [b], most=most) for b in batches]
    without = [t.moved(t.network(), [b]) for b in batches]
    of_triplets, of_rows = triplets / (triplets + 32), t.ROWS / (t.ROWS + 20)
    for one, other, bare_one, bare_other, both in zip(
        *(w[0] for w in with_memory), *(w[0] for w in without), found[0], strict=True
    ):
        expected = of_triplets * bare_one + (1 - of_triplets) * bare_other
        expected += of_rows * (one - bare_one) + (1 - of_rows) * (other - bare_other)
        np.testing.assert_allclose(expected, both, atol=1e-6)
    losses = [w[1]["memory_loss"] for w in with_memory]
    assert np.isclose(of_rows * losses[0] + (1 - of_rows) * losses[1], found[1]["memory_loss"])
    for b, alone in zip(batches, with_memory):
        np.testing.assert_allclose(found[2][b["row"]], alone[2][b["row"]], atol=1e-6)
"""


def test_two_devices_give_the_step_of_one():
    """In a process of its own: a machine's CPU can be cut into two devices before TensorFlow has begun only."""
    done = subprocess.run([sys.executable, "-c", PREPARED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
