"""A checkpoint: what can be loaded, and what tells one from another."""

import keras
import numpy as np
import pytest

from pipeline.embedding.network import Network, copy_checkpoint, function_at, load_network
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


def test_a_checkpoint_that_was_changed_or_exchanged_is_refused(tmp_path):
    one, other = tmp_path / "one" / "model.keras", tmp_path / "other" / "model.keras"
    for path, seed in ((one, 0), (other, 1)):
        Network(network(seed), "").save(path)
    assert load_network(one).digest() == digest(network())
    one.write_bytes(other.read_bytes())
    for read in (load_network, lambda path: copy_checkpoint(path, tmp_path / "best" / "model.keras")):
        with pytest.raises(InputError, match="model.keras was changed since .*: model.sha256 beside it is of another"):
            read(one)
    one.with_suffix(".sha256").unlink()
    assert load_network(one).digest() == digest(network(1)), "as it was meant"


@pytest.mark.parametrize("end", [100, -100, -30, -1])
def test_a_cut_checkpoint_of_others_is_refused(tmp_path, end):
    network().save(tmp_path / "m.keras")
    (tmp_path / "m.keras").write_bytes((tmp_path / "m.keras").read_bytes()[:end])
    with pytest.raises(InputError, match="m.keras is not a Keras model"):
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
