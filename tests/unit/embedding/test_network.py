"""A checkpoint: what can be loaded, and what tells one from another."""

import keras
import numpy as np
import pytest

from pipeline.embedding.network import Network, function_at, load_network
from pipeline.errors import InputError


def network(seed=0, **options):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,), name="in")
    outputs = keras.layers.Dropout(0.5, name="dropout")(keras.layers.Dense(3, name="dense", **options)(inputs))
    return keras.Model(inputs, outputs, name="network")


def digest(model):
    return Network(model, "").digest()


def test_a_digest_is_of_what_a_network_computes_not_of_its_file(tmp_path):
    model = network()
    model.save(tmp_path / "a.keras")
    model(np.ones((1, 4), np.float32), training=True)  # moves the generator of the dropout
    loaded = load_network(tmp_path / "a.keras").model
    assert digest(loaded) == digest(model) == digest(network())
    assert len({digest(found) for found in (model, network(1), network(activation="relu"))}) == 3
    weights = [weight + np.float32(1e-7) for weight in model.get_weights()]
    model.set_weights(weights)
    assert digest(model) != digest(loaded)


def test_what_is_no_checkpoint_is_refused_with_the_reason(tmp_path):
    with pytest.raises(InputError, match="m.keras is missing. Make a first checkpoint"):
        load_network(tmp_path / "m.keras")
    (tmp_path / "m.keras").write_bytes(b"no model")
    with pytest.raises(InputError, match="m.keras is not a Keras model: 8 bytes, no zip archive"):
        load_network(tmp_path / "m.keras")
    np.savez(tmp_path / "m.npz", a=np.zeros(3))
    (tmp_path / "m.npz").rename(tmp_path / "m.keras")
    with pytest.raises(InputError, match="m.keras is not a Keras model that can be loaded"):
        load_network(tmp_path / "m.keras")


def test_no_code_of_a_file_runs(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x, output_shape=(4,))(inputs))
    model.save(tmp_path / "m.keras")
    with pytest.raises(InputError, match="m.keras is not a Keras model that can be loaded.*(unsafe|lambda)"):
        load_network(tmp_path / "m.keras")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("networks:nothing", "networks:nothing is no name, expected package.module:function"),
        ("no_such_module:f", "No module named 'no_such_module'"), ("networks", "expected package.module:function"),
        (":f", "expected package.module:function"), ("networks:NO_FUNCTION", "networks:NO_FUNCTION is a int"),
    ],
)  # fmt: skip
def test_an_import_path_that_names_no_function_is_refused(path, message):
    with pytest.raises(InputError, match=message):
        function_at(path)
