"""The fused kernel against Keras' own batch normalisation."""

import shutil
from contextlib import nullcontext

import numpy as np
import pytest

from pipeline import mine, records
from pipeline.batch_norm import fused
from trainer import train

tf = records.import_tensorflow()
import keras  # noqa: E402


@pytest.fixture(autouse=True)
def names_from_zero():
    """Keras numbers its layers, and a checkpoint's digest covers their names."""
    yield
    keras.backend.clear_session()


def layer_between(shape, **options):
    """A network around one layer, its weights and statistics away from where they begin."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, keras.layers.BatchNormalization(**options)(inputs))
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.5, 2, value.shape) for value in model.get_weights()])
    return model


def results(model, inputs, training, kernel):
    """Outputs, what becomes of the statistics, and the gradients of all that has one."""

    @tf.function
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = model(x, training=training)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 3)
        return outputs, tape.gradient(loss, [x, *model.trainable_variables])

    with fused(model) if kernel else nullcontext():
        traced = run.get_concrete_function(tf.constant(inputs))
    names = [operation.type for operation in traced.graph.get_operations()]
    outputs, gradients = run(tf.constant(inputs))
    return "FusedBatchNormV3" in names, [outputs, *gradients, *model.get_weights()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("shape", "options", "taken"),
    [
        ((5, 4, 3), {"momentum": 0.5}, True),
        ((5, 4, 3), {"scale": False}, True),
        ((5, 4, 3), {"center": False, "epsilon": 0.1}, True),
        ((5, 4, 3), {"dtype": "mixed_bfloat16"}, True),
        ((5, 4, 3), {"dtype": "bfloat16"}, False),
        ((5, 4, 3), {"axis": 1}, False),
        ((5, 4, 3), {"renorm": True}, False),
        ((5, 4, 3), {"epsilon": 1e-6}, False),
        ((5, 4, 3), {"dtype": "float64"}, False),
        ((7,), {}, False),
    ],
)  # fmt: skip
def test_the_kernel_does_what_keras_does(shape, options, taken, training):
    inputs = (
        np.random.default_rng(0)
        .normal(3, 2, (6, *shape))
        .astype("float64" if "float64" in options.values() else "float32")
    )
    was_taken, found = results(layer_between(shape, **options), inputs, training, kernel=True)
    _, expected = results(layer_between(shape, **options), inputs, training, kernel=False)
    assert was_taken == taken
    for one, other in zip(found, expected, strict=True):
        one, other = np.asarray(one, float), np.asarray(other, float)
        tolerance = 0.05 if "bfloat16" in str(options.get("dtype")) else 1e-4
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


def test_a_layer_that_is_not_trained_keeps_its_statistics():
    def run(kernel):
        model = layer_between((5, 4, 3))
        model.layers[1].trainable = False
        return results(model, np.random.default_rng(0).normal(3, 2, (2, 5, 4, 3)).astype(np.float32), True, kernel)

    (was_taken, found), (_, expected) = run(True), run(False)
    assert was_taken
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    for one, before in zip(found[-4:], layer_between((5, 4, 3)).get_weights(), strict=True):
        np.testing.assert_array_equal(one, before)


def test_warm_up_mining_and_training_take_the_kernel(digits, tmp_path, monkeypatch):
    run, taken, kernel = shutil.copytree(digits, tmp_path / "run"), set(), tf.compat.v1.nn.fused_batch_norm

    def counted(*given, is_training, **named):
        taken.add(is_training)
        return kernel(*given, is_training=is_training, **named)

    monkeypatch.setattr(tf.compat.v1.nn, "fused_batch_norm", counted)
    for command, flags, learns in ((train, ["--online", "--steps", "1"], True), (mine, [], False), (train, [], True)):
        assert command.main(["--run_dir", str(run), *flags]) == 0
        assert taken == {learns}
        taken.clear()
