"""What no network has to beat: the payload itself."""

import numpy as np
import tensorflow as tf

from pipeline.corpus.corpus import Corpus, Split
from pipeline.embedding.decoding import decode_records
from pipeline.errors import InputError

BLOCK = 256


def pixels(corpus: Corpus, split: Split) -> np.ndarray:
    """float32 [rows, values], the payload of images or vectors, L2-normalised."""
    feature = corpus.feature
    if feature.kind == "text":
        raise InputError(f"{corpus.directory} holds texts; --pixels compares images and vectors")
    shape = tuple(size for size in feature.shape if size)
    if len(shape) < len(feature.shape):
        raise InputError(f"{corpus.directory}: images differ in size, they cannot be compared pixel by pixel")
    rows = np.arange(split.rows)
    values = [
        decode_records(feature, tf.constant(split.read(part)), shape).numpy()
        for part in np.split(rows, rows[BLOCK::BLOCK])
    ]
    flat = np.concatenate(values).reshape(len(rows), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
