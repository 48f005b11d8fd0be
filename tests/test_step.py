"""A step against the plain triplet loss of three separate towers; padding, devices, XLA, mixed precision."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pipeline import records
from trainer import data, step, train

tf = records.import_tensorflow()
import keras  # noqa: E402

ROWS, TRIPLETS = 24, 60


def network(normalised_batches: bool):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(6, 3, activation="tanh")(inputs)
    if normalised_batches:
        x = keras.layers.BatchNormalization(momentum=0.5)(x)
    x = keras.layers.Dense(5)(keras.layers.Flatten()(x))
    if normalised_batches:
        x = keras.layers.BatchNormalization(momentum=0.5)(x)
    return keras.Model(inputs, keras.layers.UnitNormalization()(x))


def batch(seed=0, rows=ROWS, triplets=TRIPLETS, padding=0):
    rng = np.random.default_rng(seed)
    inputs, real = data.padded(tf.constant(rng.standard_normal((rows, 8, 8, 1)), tf.float32), rows + padding)
    listed, valid = data.padded(tf.constant(rng.integers(0, rows, (triplets, 3)), tf.int32), triplets + 3 * padding)
    return {"inputs": inputs, "real": real, "triplets": listed, "valid": valid}


def moved(model, batches, strategy=None, **options):
    """The change of every variable by one step of plain gradient descent, and what the step returns."""
    before = [variable.numpy() for variable in model.variables]
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build(model.trainable_variables)
    spec = {name: tf.TensorSpec([None, *value.shape[1:]], value.dtype) for name, value in batches[0].items()}
    values, embeddings = step.Step(model, optimizer, "triplet", 0.2, strategy, spec, **options)(batches)
    assert [len(part) for part in embeddings] == [len(given["inputs"]) for given in batches]
    return [variable.numpy() - old for variable, old in zip(model.variables, before, strict=True)], values


def test_one_step_is_that_of_three_towers():
    model, given = network(False), batch(padding=5)
    given = {name: value[:ROWS] if name in ("inputs", "real") else value for name, value in given.items()}
    sides = tf.gather(given["inputs"], given["triplets"][:TRIPLETS])  # [t, 3, 8, 8, 1]
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
    np.testing.assert_allclose(values, [loss, active, np.sum(d_ap), np.sum(d_an), 0.0], rtol=1e-5)


@pytest.mark.parametrize("padding", [0, 1, 40])
def test_xla_and_its_padding_change_neither_gradient_nor_statistics(padding):
    plain, values = moved(network(True), [batch()])
    padded, of_padded = moved(network(True), [batch(padding=padding)], jit=True)
    for one, other in zip(plain, padded, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(values, of_padded, rtol=1e-5)


PREPARED = """
import sys; sys.path.insert(0, "tests")
from pipeline import records
tf = records.import_tensorflow()
import numpy as np
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import test_step as t
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
"""


def on_two_devices(code):
    """Runs code that finds this module as `t` and a strategy for two logical CPU devices as `two`."""
    done = subprocess.run([sys.executable, "-c", PREPARED + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


TWO_DEVICES = """
first, second = t.batch(0), t.batch(1, rows=20, triplets=TRIPLETS, padding=4)
short = {name: tf.concat([first[name], second[name]], axis=0) for name in ("inputs", "real", "valid")}
short["triplets"] = tf.concat([first["triplets"], second["triplets"] + t.ROWS], axis=0)
for given, whole in (([first, second], short), ([first], first)):
    one, values_of_one = t.moved(t.network(False), [whole])
    with two.scope():
        model = t.network(False)
    both, values = t.moved(model, given, two, jit=JIT)
    for a, b in zip(one, both, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(values, values_of_one, rtol=1e-5)
"""


@pytest.mark.parametrize("jit", [False, True])
def test_two_devices_give_the_step_of_one(jit):
    """Batches of 60 and 32 triplets: the mean is over all 92. A device without a batch changes nothing."""
    on_two_devices(TWO_DEVICES.replace("TRIPLETS", "32").replace("JIT", str(jit)))


ONE_WITHOUT_TRIPLETS = """
rng = np.random.default_rng(0)

def with_stored(given):
    rows, stored = len(given["inputs"]), rng.standard_normal((40, 5)).astype("float32")
    positive = rng.random((rows, 40)) < 0.2
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    masks = {"stored_positive": positive, "stored_negative": ~positive, "batch_positive": np.zeros((rows, rows), bool)}
    return given | {name: tf.constant(value) for name, value in ({"stored": stored} | masks).items()}

first, second = with_stored(t.batch(0, triplets=0)), with_stored(t.batch(1, rows=20, triplets=32))
moved, values_of_first = t.moved(t.network(False), [first])
_, values_of_second = t.moved(t.network(False), [second])
assert values_of_first[0] == 0 and np.abs(moved[0]).max() > 0
with two.scope():
    model = t.network(False)
_, values = t.moved(model, [first, second], two)
share = t.ROWS / (t.ROWS + 20)
assert np.isclose(values[4], share * values_of_first[4] + (1 - share) * values_of_second[4])
assert np.isclose(values[0], values_of_second[0]) and np.isclose(values[1], values_of_second[1])
"""


def test_a_device_whose_batch_has_no_triplets_still_learns_from_stored_rows():
    on_two_devices(ONE_WITHOUT_TRIPLETS)


def test_mixed_precision_computes_in_bfloat16_and_leaves_no_trace():
    model, plain = network(True), network(True)
    config = json.dumps(model.get_config())
    with step.mixed_precision(model):
        assert model.layers[1](tf.zeros((1, 8, 8, 1))).dtype == tf.bfloat16
        assert model(tf.zeros((1, 8, 8, 1))).dtype == tf.float32
        changed, _ = moved(model, [batch()])
    expected, _ = moved(plain, [batch()])
    assert json.dumps(model.get_config()) == config
    for one, other in zip(changed, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=0.02)
    assert any((one != other).any() for one, other in zip(changed, expected, strict=True))


def trained(mined, tmp_path, *arguments):
    run = shutil.copytree(mined, tmp_path / "run")
    assert train.main(["--run_dir", str(run), *arguments]) == 0
    return run, json.loads((run / "rounds/0000/train/metrics.json").read_text())


def test_a_round_ends_when_too_few_triplets_are_active(mined, tmp_path, capsys):
    _, metrics = trained(mined, tmp_path, "--epochs", "9", "--min_active", "0.05")
    shares = [epoch["active_share"] for epoch in metrics["epochs"]]
    assert metrics["stopped_by"] == "min_active" and 1 <= len(shares) < 9
    assert shares[-1] < 0.05 <= min([1.0, *shares[:-1]])
    assert "--min_active" in capsys.readouterr().out


def test_a_round_ends_when_validation_stops_to_rise(mined, tmp_path):
    _, metrics = trained(mined, tmp_path, "--epochs", "30", "--learning_rate", "0.01")
    found = [epoch["validation_map_at_r"] for epoch in metrics["epochs"]]
    assert metrics["stopped_by"] == "validation" and len(found) < 30
    assert found[-1] <= max(found[:-1]) and (np.diff(found[:-1]) > 0).all()


@pytest.mark.parametrize("loss", ["active-triplet", "contrastive"])
def test_the_other_losses_train(mined, tmp_path, loss):
    _, metrics = trained(mined, tmp_path, "--loss", loss, "--mixed_precision", "--jit")
    assert metrics["loss"] == loss and np.isfinite(metrics["epochs"][0]["loss"])
    assert metrics["epochs"][0]["active_share"] < 0.5
