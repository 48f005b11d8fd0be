"""The networks that ship, vocabularies, and functions by import path."""

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf

from pipeline.corpus.manifest import Feature
from pipeline.embedding.network import Network, load_network
from trainer import models

TEXTS = tf.data.Dataset.from_tensor_slices(["one two", "two three", "a\u2028b \x85 c\x1cd", "a", "b"]).batch(2)
SAID = tf.constant([["one two"], ["a\u2028b"], ["a"], ["..."], [""]])


def reloaded(model, directory):
    model.save(directory / "model.keras")
    return load_network(directory / "model.keras").model


def test_a_vocabulary_survives_the_file_whatever_is_in_its_words(tmp_path):
    """Keras writes an adapted vocabulary as lines of text, and reads other lines back; in the config it is safe."""
    model = models.with_vocabulary(networks.vectorising(()), TEXTS)
    [layer] = [layer for layer in model.layers if hasattr(layer, "get_vocabulary")]
    assert {"one", "a\u2028b", "c\x1cd"} <= set(layer.get_vocabulary())
    again = reloaded(model, tmp_path)
    assert again.layers[1].get_vocabulary() == layer.get_vocabulary()
    np.testing.assert_array_equal(model(SAID), again(SAID))
    assert Network(again, "").digest() == Network(model, "").digest()


def test_a_vocabulary_that_is_there_stays():
    model = models.with_vocabulary(networks.vectorising((), vocabulary=["three", "four"]), TEXTS)
    assert model.layers[1].get_vocabulary() == ["", "[UNK]", "three", "four"]


def test_the_digest_covers_vocabularies_and_their_weights():
    """They are no variables, and Keras leaves them out of the config when a layer was adapted."""

    def digest(texts, **options):
        keras.utils.clear_session()  # which numbers layers from zero: the digest covers their names
        inputs = keras.Input((1,), dtype="string")
        layer = keras.layers.TextVectorization(**options)
        layer.adapt(texts)
        return Network(keras.Model(inputs, layer(inputs)), "").digest()

    assert digest(["a b"]) == digest(["a b"]) != digest(["a c"])
    weighted = {"output_mode": "tf_idf"}
    assert digest(["a b", "b"], **weighted) == digest(["a b", "b"], **weighted) != digest(["a b", "a b"], **weighted)


def test_the_text_network_gives_every_text_a_vector(tmp_path):
    model = models.with_vocabulary(models.text(()), TEXTS)
    model(tf.reshape(SAID, [-1]), training=True)  # as trainer.init lets batch normalisation see the corpus
    found = reloaded(model, tmp_path)(tf.reshape(SAID, [-1])).numpy()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found[3], found[4])  # neither has a word


@pytest.mark.parametrize(
    ("feature", "shape"),
    [
        (Feature(kind="image", shape=(8, 8, 1), dtype="uint8"), (8, 8, 1)),
        (Feature(kind="image", shape=(105, 20, 3), dtype="uint8"), (32, 20, 3)),
        (Feature(kind="image", shape=(None, None, 3), dtype="uint8"), (32, 32, 3)),
        (Feature(kind="vector", shape=(12,), dtype="float32"), (12,)),
        (Feature(kind="text", shape=(), dtype="string"), ()),
    ],
)
def test_the_network_that_ships_takes_what_the_corpus_has(feature, shape):
    assert models.example_shape(feature) == shape
    model = models.default_for(feature.kind)(shape)
    assert model.inputs[0].shape[1:] == shape and model.outputs[0].shape[1:] == (models.EMBEDDING_DIM,)
