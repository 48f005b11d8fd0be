"""A checkpoint: loading it, its digest, what it takes and gives."""

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from pipeline.corpus.manifest import DTYPES, Feature
from pipeline.errors import InputError
from pipeline.files.storage import local_copy


def load_checkpoint(path: Path) -> keras.Model:
    """Loads a .keras file, with Keras' safe mode on: no code from the file runs."""
    if not path.exists():
        raise InputError(f"{path} is missing. Make a first checkpoint: python -m trainer.init --run_dir ...")
    local = local_copy(path)
    if not zipfile.is_zipfile(local):
        size = path.stat().st_size
        raise InputError(f"{path} is not a Keras model: {size:,} bytes, no zip archive. Put the .keras file back.")
    try:
        return keras.saving.load_model(local, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise InputError(f"{path} is not a Keras model that can be loaded: {str(error)[:500]}") from None


def checkpoint_digest(model: keras.Model) -> str:
    """SHA-256 over a model's config, its vocabularies, and each variable's path, dtype, shape and bytes.

    Not over the .keras file, which carries its date of saving, nor over the state of random generators, which
    Keras draws anew when it loads a layer such as Dropout.
    """
    digest = hashlib.sha256(json.dumps(model.get_config(), sort_keys=True, default=str).encode())
    for layer in leaves(model):
        if hasattr(layer, "get_vocabulary"):  # no variable; in the config only if it was given there
            kept: dict[str, Any] = {}
            layer.save_own_variables(kept)  # inverse document frequencies
            digest.update(json.dumps([layer.get_vocabulary(), kept], default=str).encode())
    for variable in model.weights:
        value = np.ascontiguousarray(variable.numpy())
        digest.update(f"{variable.path} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def leaves(model: keras.Model) -> Iterator[keras.Layer]:
    """The layers of a model, and of the models in it, in order."""
    for layer in model.layers:
        yield from leaves(layer) if isinstance(layer, keras.Model) else [layer]


def input_shape(model: keras.Model, feature: Feature, name: Path | str) -> tuple[int, ...]:
    """What the network takes of one example: (height, width, channels), (dim,), for texts () or (1,).

    Raises:
      InputError: if it does not fit the corpus' feature.
    """
    inputs = model.inputs or []
    shape = tuple(inputs[0].shape[1:]) if len(inputs) == 1 else None
    fits = shape is not None and None not in shape and (inputs[0].dtype == "string") == (feature.kind == "text")
    right = {"image": len(shape or ()) == 3, "text": shape in ((), (1,)), "vector": shape == feature.shape}
    if shape is None or not fits or not right[feature.kind]:
        takes = ", ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in inputs) or "no fixed input"
        raise InputError(
            f"{name}: the network takes {takes}; found {feature.kind} of shape {list(feature.shape)}. It must "
            f"take one input: [batch, height, width, channels] for images, [batch, dim] for vectors, strings [batch] "
            f"or [batch, 1] for texts."
        )
    return shape


def taken(model: keras.Model, kind: str) -> Feature:
    """Payloads of a kind as the network takes them: images of any size. `input_shape` says whether it takes them."""
    shape = tuple(model.inputs[0].shape[1:]) if model.inputs else ()
    shapes = {"image": (None, None, *shape[2:3]), "text": (), "vector": shape[:1]}
    return Feature(kind=kind, shape=shapes[kind], dtype=DTYPES[kind])


def output_dim(model: keras.Model, name: Path | str) -> int:
    """How many numbers an embedding has. Raises InputError unless the network gives one vector an example."""
    if not isinstance(model.output_shape, tuple) or len(model.output_shape) != 2:
        raise InputError(
            f"{name}: the network gives {model.output_shape}, expected [batch, dim]: one vector an example. End it "
            f"with a pooling layer or keras.layers.Flatten(), and keras.layers.UnitNormalization()."
        )
    return int(model.output_shape[1])
