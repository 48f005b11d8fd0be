"""One's own networks: .keras files, texts, normalisation, keras.applications with weights from a file."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_ingest import ingested
from test_sources import DATA

from pipeline import mine, records
from pipeline.embed import Embedder
from pipeline.records import InputError
from trainer import models, train

tf = records.import_tensorflow()
import keras  # noqa: E402

TEXTS = tf.data.Dataset.from_tensor_slices(["one two", "two three", "a\u2028b \x85 c\x1cd", "a", "b"]).batch(2)
SAID = tf.constant([["one two"], ["a\u2028b"], ["a"], ["..."], [""]])


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """A run directory with banking77's extract."""
    run = tmp_path_factory.mktemp("texts") / "run"
    ingested(run, f"csv:{DATA / 'banking77.csv'},label=category")
    return run


def vectorising(shape, vocabulary=None, **options):
    inputs = keras.Input((1,), dtype="string")
    tokens = keras.layers.TextVectorization(50, vocabulary=vocabulary, output_sequence_length=4, **options)(inputs)
    x = keras.layers.GlobalMaxPooling1D()(keras.layers.Embedding(50, 8)(tokens))
    return keras.Model(inputs, keras.layers.UnitNormalization()(keras.layers.Dense(8)(x)))


def reloaded(model, directory):
    model.save(directory / "model.keras")
    return records.load_checkpoint(directory / "model.keras")


def test_a_vocabulary_survives_the_file_whatever_is_in_its_words(tmp_path):
    """Keras writes an adapted vocabulary as lines of text, and reads other lines back; in the config it is safe."""
    model = models.with_vocabulary(vectorising(()), TEXTS)
    [layer] = [layer for layer in model.layers if hasattr(layer, "get_vocabulary")]
    assert {"one", "a\u2028b", "c\x1cd"} <= set(layer.get_vocabulary())
    again = reloaded(model, tmp_path)
    assert again.layers[1].get_vocabulary() == layer.get_vocabulary()
    np.testing.assert_array_equal(model(SAID), again(SAID))
    assert records.checkpoint_digest(again) == records.checkpoint_digest(model)


def test_the_digest_covers_vocabularies_and_their_weights():
    """They are no variables, and Keras leaves them out of the config when a layer was adapted."""

    def digest(texts, **options):
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        inputs = keras.Input((1,), dtype="string")
        layer = keras.layers.TextVectorization(**options)
        layer.adapt(texts)
        return records.checkpoint_digest(keras.Model(inputs, layer(inputs)))

    assert digest(["a b"]) == digest(["a b"]) != digest(["a c"])
    weighted = {"output_mode": "tf_idf"}
    assert digest(["a b", "b"], **weighted) == digest(["a b", "b"], **weighted) != digest(["a b", "a b"], **weighted)


def test_the_text_network_gives_every_text_a_vector(tmp_path):
    model = models.with_vocabulary(models.text(()), TEXTS)
    model(tf.reshape(SAID, [-1]), training=True)  # as --init lets batch normalisation see the corpus
    found = reloaded(model, tmp_path)(tf.reshape(SAID, [-1])).numpy()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found[3], found[4])  # neither has a word


@pytest.mark.parametrize("arguments", [["--mixed_precision"], ["--loss", "contrastive"]])
def test_ones_own_text_network_is_adapted_and_trains(texts, tmp_path, arguments):
    run = shutil.copytree(texts, tmp_path / "run")
    assert train.main(["--run_dir", str(run), "--init", "--model", "test_models:vectorising"]) == 0
    model = records.load_checkpoint(records.checkpoint_path(run, 0))
    words = model.layers[1].get_vocabulary()
    assert len(words) == 50 and "my" in words
    assert mine.main(["--run_dir", str(run), "--negatives", "semi-hard,hard"]) == 0
    assert train.main(["--run_dir", str(run), *arguments]) == 0
    trained = records.load_checkpoint(records.checkpoint_path(run, 1))
    assert trained.layers[1].get_vocabulary() == words
    assert np.abs(trained.get_weights()[0] - model.get_weights()[0]).max() > 0


def text_to_pixels(shape):
    inputs = keras.Input((1,), dtype="string")
    return keras.Model(inputs, keras.layers.Embedding(10, 4)(keras.layers.TextVectorization(10)(inputs)))


def unnormalised(shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.Dense(16)(keras.layers.Flatten()(inputs)))


def numbers(shape):
    return unnormalised((4,))


def feature_map(shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))


def test_a_keras_file_is_round_0s_checkpoint(digits, tmp_path):
    keras.utils.set_random_seed(7)
    model = models.convolutional((8, 8, 1))
    path = tmp_path / "own.keras"
    model.save(path)
    run = shutil.copytree(digits, tmp_path / "run")
    shutil.rmtree(run / "rounds")
    assert train.main(["--run_dir", str(run), "--init", "--model", str(path)]) == 0
    found = records.load_checkpoint(records.checkpoint_path(run, 0))
    assert records.checkpoint_digest(found) == records.checkpoint_digest(model)
    assert mine.main(["--run_dir", str(run), "--anchors", "50"]) == 0


@pytest.mark.parametrize(
    ("kind", "model", "message"),
    [
        ("digits", "test_models:unnormalised", "not L2-normalised.*--init --normalize appends it"),
        ("digits", "test_models:feature_map", r"gives \(None, 6, 6, 4\), expected \[batch, dim\].*pooling"),
        ("digits", "test_models:vectorising", "takes string .*the corpus has image"),
        ("digits", "none.keras", "none.keras is missing"),
        ("digits", "{file}", "is not a Keras model"),
        ("texts", "trainer.models:dense", r"cannot be built for examples of shape \(\)"),
        ("texts", "test_models:numbers", "takes float32 .*the corpus has text"),
        ("texts", "test_models:text_to_pixels", r"expected \[batch, dim\]"),
    ],
)
def test_networks_that_do_not_fit_are_refused(request, tmp_path, kind, model, message):
    run = shutil.copytree(request.getfixturevalue(kind), tmp_path / "run")
    shutil.rmtree(run / "rounds", ignore_errors=True)
    (tmp_path / "not.keras").write_text("nothing")
    with pytest.raises(InputError, match=message):
        train.main(["--run_dir", str(run), "--init", "--model", model.format(file=tmp_path / "not.keras")])
    assert not records.checkpoint_path(run, 0).exists()


def test_normalize_ends_a_network_with_unit_vectors(digits, tmp_path):
    corpus = records.open_corpus(digits)
    for name in ("unnormalised", "already"):
        run = shutil.copytree(digits, tmp_path / name)
        shutil.rmtree(run / "rounds")
        model = {"unnormalised": "test_models:unnormalised", "already": "trainer.models:convolutional"}[name]
        assert train.main(["--run_dir", str(run), "--init", "--normalize", "--model", model]) == 0
        embedder = Embedder(records.checkpoint_path(run, 0), corpus)
        found = embedder(corpus.split("eval").read(np.arange(20)))
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-2)
        layers = [type(layer).__name__ for layer in embedder.model.layers]
        assert layers.count("UnitNormalization") == 1


def test_xla_and_texts_are_refused_together(texts):
    with pytest.raises(InputError, match="--jit compiles no strings"):
        train.main(["--run_dir", str(texts), "--jit"])


def mobilenet(shape):
    """keras.applications with weights from a local file, as the README shows it."""
    base = keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3), include_top=False, pooling="avg", weights=os.environ["MOBILENET_WEIGHTS"]
    )
    return keras.Model(base.input, keras.layers.UnitNormalization()(keras.layers.Dense(64)(base.output)))


@pytest.mark.slow
def test_keras_applications_with_weights_from_a_local_file(digits, tmp_path, monkeypatch):
    keras.utils.set_random_seed(3)
    path = tmp_path / "mobilenet.weights.h5"
    base = keras.applications.MobileNetV3Small(input_shape=(32, 32, 3), include_top=False, pooling="avg", weights=None)
    base.save_weights(path)
    monkeypatch.setenv("MOBILENET_WEIGHTS", str(path))
    run = shutil.copytree(digits, tmp_path / "run")
    shutil.rmtree(run / "rounds")
    assert train.main(["--run_dir", str(run), "--init", "--model", "test_models:mobilenet"]) == 0
    found = records.load_checkpoint(records.checkpoint_path(run, 0))
    np.testing.assert_array_equal(found.get_layer("conv").kernel, base.get_layer("conv").kernel)
    assert mine.main(["--run_dir", str(run), "--anchors", "100", "--negatives", "hard"]) == 0
    assert train.main(["--run_dir", str(run)]) == 0
