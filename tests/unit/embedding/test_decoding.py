"""Payloads to what a network takes."""

import numpy as np
import pytest
import tensorflow as tf

from pipeline.corpus.manifest import Feature
from pipeline.embedding.decoding import decode, decode_records, input_spec
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
        found = decode(feature, encoded, (32, 24, channels))
        assert found.shape == (1, 32, 24, channels) and found.dtype == tf.float32
        np.testing.assert_allclose(found[0], expected, atol=1e-3)


def test_images_of_several_sizes_and_channels_become_of_one():
    images = [np.full((4, 6, 1), 100, np.uint8), np.full((9, 2, 3), 100, np.uint8)]
    encoded = tf.constant([tf.io.encode_png(image).numpy() for image in images])
    found = decode(image_feature(None, None, 3), encoded, (5, 5, 3))
    np.testing.assert_allclose(found, np.full((2, 5, 5, 3), 100.0), atol=1e-4)


def test_records_of_vectors_and_of_texts():
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    records = [make_example({"id": [b"x"], "vector": vector}) for vector in vectors]
    np.testing.assert_array_equal(decode_records(VECTOR, tf.constant(records), (3,)), vectors)
    texts = tf.constant([make_example({"text": [word]}) for word in (b"a", b"")])
    for shape in ((), (1,)):
        assert decode_records(TEXT, texts, shape).numpy().ravel().tolist() == [b"a", b""]
        assert decode_records(TEXT, texts, shape).shape == (2, *shape)


def test_a_batch_is_described():
    assert input_spec(TEXT, (1,)) == tf.TensorSpec([None, 1], tf.string)
    assert input_spec(image_feature(8, 8, 1), (8, 8, 1), 4) == tf.TensorSpec([4, 8, 8, 1], tf.float32)
