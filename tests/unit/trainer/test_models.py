"""The networks that ship, vocabularies, and functions by import path."""

import csv
import subprocess
import sys

import keras
import networks
import numpy as np
import pytest
import tensorflow as tf
from conftest import BANKING77

from pipeline.corpus.manifest import Feature
from pipeline.embedding.network import Network, load_network
from trainer import models
from trainer.measures.evaluation import evaluate_embeddings

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


@pytest.mark.parametrize("options", [
    {"output_mode": "tf_idf", "max_tokens": 20, "pad_to_max_tokens": True}, {"output_mode": "int", "max_tokens": 5},
])  # fmt: skip
def test_a_vocabulary_is_what_keras_would_adapt(options):
    def layer_of(adapt):
        layer = keras.layers.TextVectorization(split="character", ngrams=(1, 2), **options)
        inputs = keras.Input((), dtype="string")
        return adapt(keras.Model(inputs, layer(inputs))).layers[1]

    texts = tf.data.Dataset.from_tensor_slices(["one two", "two", "", "a\u2028b", "bb"]).batch(2)
    found = layer_of(lambda model: models.with_vocabulary(model, texts))
    adapted = layer_of(lambda model: [model.layers[1].adapt(texts), model][1])
    assert found.get_vocabulary() == adapted.get_vocabulary()
    np.testing.assert_array_equal(found(["two bb", "zz"]), adapted(["two bb", "zz"]))


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


def test_the_digest_covers_each_of_many_document_frequencies():
    def digest(rare):
        keras.utils.clear_session()
        words = [f"w{number}" for number in range(3000)]
        layer = keras.layers.TextVectorization(output_mode="tf_idf", vocabulary=words, idf_weights=[1.0] * 3000)
        inputs = keras.Input((1,), dtype="string")
        model = keras.Model(inputs, layer(inputs))
        kept = {}
        layer.save_own_variables(kept)
        kept["idf_weights"][1500] = rare
        layer.load_own_variables(kept)
        return Network(model, "").digest()

    assert digest(1.0) == digest(1.0) != digest(2.0)


def test_the_text_network_gives_every_text_a_vector(tmp_path):
    model = models.with_vocabulary(models.text(()), TEXTS)
    found = reloaded(model, tmp_path)(tf.reshape(SAID, [-1])).numpy()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found[3], found[4])  # neither has a letter


def test_the_text_network_begins_about_as_tf_idf():
    from sklearn.feature_extraction.text import TfidfVectorizer

    with open(BANKING77, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts, labels = [row["text"] for row in rows], [row["category"] for row in rows]
    keras.utils.set_random_seed(0)
    model = models.with_vocabulary(models.text(()), tf.data.Dataset.from_tensor_slices(texts).batch(64))
    found = evaluate_embeddings(model(tf.constant(texts)).numpy(), labels)
    tf_idf = TfidfVectorizer(analyzer="char", ngram_range=(1, 4)).fit_transform(texts).toarray()
    assert found["map_at_r"] > evaluate_embeddings(tf_idf, labels)["map_at_r"] - 0.03


def test_the_text_network_is_the_same_in_another_process(tmp_path):
    model = models.with_vocabulary(models.text(()), TEXTS)
    assert Network(reloaded(model, tmp_path), "").digest() == Network(model, "").digest()
    texts = ["one two", "a\u2028b", "", "three"]
    code = (
        "import numpy as np, tensorflow as tf; from pathlib import Path; "
        "from pipeline.embedding.network import load_network; "
        f"model = load_network(Path({str(tmp_path / 'model.keras')!r})).model; "
        f"np.save({str(tmp_path / 'found.npy')!r}, model(tf.constant({texts!r})).numpy())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), model(tf.constant(texts)).numpy())


@pytest.mark.parametrize("dim", [2, 300])
def test_the_vector_network_begins_as_its_input(dim):
    vectors = np.random.default_rng(0).normal(0.3, 5, (50, dim)).astype(np.float32)
    found = models.dense((dim,))(vectors).numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, unit @ unit.T, atol=1e-4)
    zeros = models.dense((dim,))(np.zeros((1, dim), np.float32)).numpy()
    np.testing.assert_allclose(np.linalg.norm(zeros), 1, atol=1e-5)


@pytest.mark.parametrize(("side", "pooled"), [(8, 4), (32, 4), (105, 5), (224, 6)])
def test_large_images_are_halved_more_often(side, pooled):
    model = models.convolutional((side, side, 3))
    assert sum(isinstance(layer, keras.layers.Conv2D) for layer in model.layers) == pooled
    assert model.count_params() < 210_000


@pytest.mark.parametrize(
    ("stored", "taken", "said"),
    [
        ((8, 8, 1), (8, 8, 1), ""),
        ((105, 105, 1), (32, 32, 1), "images are shrunk from 105 x 105 to 32 x 32; less so: trainer.init --max_side"),
        ((None, None, 3), (64, 64, 3), "images of any size are scaled to 64 x 64"),
    ],
)
def test_what_is_lost_of_images_is_said(stored, taken, said, caplog):
    with caplog.at_level("INFO"):
        models.say_shrinking(Feature(kind="image", shape=stored, dtype="uint8"), taken)
    assert said in caplog.text and bool(said) == bool(caplog.text)


@pytest.mark.parametrize(
    ("feature", "shape", "dim"),
    [
        (Feature(kind="image", shape=(8, 8, 1), dtype="uint8"), (8, 8, 1), models.EMBEDDING_DIM),
        (Feature(kind="image", shape=(105, 20, 3), dtype="uint8"), (32, 20, 3), models.EMBEDDING_DIM),
        (Feature(kind="image", shape=(None, None, 3), dtype="uint8"), (32, 32, 3), models.EMBEDDING_DIM),
        (Feature(kind="vector", shape=(12,), dtype="float32"), (12,), 12),
        (Feature(kind="text", shape=(), dtype="string"), (), models.TEXT_DIM),
    ],
)
def test_the_network_that_ships_takes_what_the_corpus_has(feature, shape, dim):
    assert models.example_shape(feature, 32) == shape
    model = models.default_for(feature.kind)(shape)
    assert model.inputs[0].shape[1:] == shape and model.outputs[0].shape[1:] == (dim,)
