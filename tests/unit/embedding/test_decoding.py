"""Payloads to what a network takes."""

import numpy as np
import pytest
import tensorflow as tf

from pipeline.corpus.manifest import Feature
from pipeline.embedding.decoding import AT_ONCE, PIXELS, Inputs, rows_of
from pipeline.files.tfrecords import make_example

VECTOR = Feature(kind="vector", shape=(3,), dtype="float32")
TEXT = Feature(kind="text", shape=(), dtype="string")


def image_feature(*shape):
    return Feature(kind="image", shape=shape, dtype="uint8")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(20, 31), (32, 24), (105, 64)])
def test_images_are_resized_as_tensorflow_resizes_them(size, channels):
    image = np.random.default_rng(0).integers(0, 256, (*size, channels), dtype=np.uint8)
    encoded = tf.constant([tf.io.encode_png(image).numpy()])
    expected = tf.image.resize(image.astype(np.float32), (32, 24), antialias=True)
    for feature in (image_feature(*size, channels), image_feature(None, None, channels)):
        found = Inputs(feature, (32, 24, channels)).of_payload(encoded)
        assert found.shape == (1, 32, 24, channels) and found.dtype == tf.float32
        np.testing.assert_allclose(found[0], expected, atol=1e-3)


def test_images_of_several_sizes_and_channels_become_of_one():
    images = [np.full((4, 6, 1), 100, np.uint8), np.full((9, 2, 3), 100, np.uint8)]
    encoded = tf.constant([tf.io.encode_png(image).numpy() for image in images])
    jpeg = tf.io.encode_jpeg(np.full((8, 16, 3), 100, np.uint8)).numpy()
    found = Inputs(image_feature(None, None, 3), (5, 5, 3)).of_payload(tf.constant([*encoded.numpy(), jpeg]))
    np.testing.assert_allclose(found, np.full((3, 5, 5, 3), 100.0), atol=1e-4)


def test_images_too_large_to_be_decoded_side_by_side_become_the_same():
    """One of more pixels than a tenth of PIXELS is among them."""
    small, large = np.full((30, 20, 1), 50, np.uint8), np.full((PIXELS // AT_ONCE // 4000 + 1, 4000, 1), 200, np.uint8)
    encoded = tf.constant([tf.io.encode_png(image).numpy() for image in (small, large, small)])
    for feature in (image_feature(None, None, 1), image_feature(*large.shape)):
        taken = Inputs(feature, (4, 4, 1))
        found = tf.function(taken.of_payload, autograph=False)(encoded)
        np.testing.assert_allclose(found[:, 0, 0, 0], [50, 200, 50], atol=1e-4)


def test_records_of_vectors_and_of_texts():
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    records = [make_example({"id": [b"x"], "vector": vector}) for vector in vectors]
    np.testing.assert_array_equal(Inputs(VECTOR, (3,)).of_records(tf.constant(records)), vectors)
    texts = tf.constant([make_example({"text": [word]}) for word in (b"a", b"")])
    for shape in ((), (1,)):
        found = Inputs(TEXT, shape).of_records(texts)
        assert found.numpy().ravel().tolist() == [b"a", b""] and found.shape == (2, *shape)


def test_a_networks_own_preprocessing_takes_the_place_of_decoding():
    def preprocess(texts):
        return {"length": tf.strings.length(texts), "text": texts}

    texts = tf.constant([make_example({"text": [word]}) for word in (b"abc", b"")])
    inputs = Inputs(TEXT, preprocess=preprocess, augment=lambda inputs, seed: inputs | {"seed": seed})
    found = inputs.of_records(texts)
    assert found["length"].numpy().tolist() == [3, 0] and rows_of(found) == 2
    assert inputs.augmented(found, 3, 4)["seed"].numpy().tolist() == [3, 4]
    png = tf.constant([tf.io.encode_png(np.zeros((8, 8, 1), np.uint8)).numpy()])
    assert Inputs(image_feature(8, 8, 1), preprocess=tf.strings.length).of_payload(png).shape == (1,)
    flat = Inputs(VECTOR, preprocess=lambda vectors: vectors[:, :2]).of_payload(tf.range(6.0))
    assert flat.numpy().tolist() == [[0, 1], [3, 4]]
