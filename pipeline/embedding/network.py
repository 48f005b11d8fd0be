"""A checkpoint: loading and saving it, its digest, what it takes and gives."""

import functools
import hashlib
import importlib
import inspect
import json
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np

from pipeline.corpus.manifest import DTYPES, Feature
from pipeline.embedding.decoding import Inputs
from pipeline.errors import InputError
from pipeline.files import manifests, storage


@dataclass(frozen=True, kw_only=True)
class Extras:
    """network.json beside a checkpoint: what a .keras file does not hold.

    imports: modules that register the network's classes with Keras. preprocess, augment: `package.module:function`, see
    `pipeline.embedding.decoding.Inputs`. shape: of one example, for a network that leaves sizes open.
    """

    FORMAT: ClassVar[str] = "triplet-miner-network/1"
    imports: tuple[str, ...] = ()
    preprocess: str | None = None
    augment: str | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Network:
    """A Keras model and what belongs to it. name: of the checkpoint, for errors."""

    model: keras.Model
    name: Path | str
    extras: Extras = Extras()

    def digest(self) -> str:
        """SHA-256 over all that an embedding depends on: a model's config, its vocabularies, each variable's dtype,
        shape and bytes, and the text of the module that `preprocess` is in.

        Not over the .keras file, which carries its date of saving, nor over names of layers, which Keras numbers anew
        in each process, nor over the state of random generators, which it draws anew when it loads a Dropout.
        """
        config = json.loads(json.dumps(self.model.get_config(), sort_keys=True, default=str))
        number = {name: f"layer {n}" for n, name in enumerate(dict.fromkeys(_layer_names(config)))}
        digest = hashlib.sha256(json.dumps(_renamed(config, number)).encode())
        for layer in layers_of(self.model):
            if hasattr(layer, "get_vocabulary"):  # no variable; in the config only if it was given there
                kept: dict[str, Any] = {}
                layer.save_own_variables(kept)  # inverse document frequencies
                digest.update(json.dumps([layer.get_vocabulary(), kept], default=np.ndarray.tolist).encode())
        for variable in self.model.weights:
            value = np.ascontiguousarray(variable.numpy())
            digest.update(f"{value.dtype} {value.shape}".encode())
            digest.update(value.tobytes())
        if self.extras.shape:
            digest.update(json.dumps(self.extras.shape).encode())
        if self.extras.preprocess:
            module = inspect.getmodule(function_at(self.extras.preprocess))
            digest.update(self.extras.preprocess.encode() + (inspect.getsource(module) if module else "").encode())
        return digest.hexdigest()

    def inputs(self, feature: Feature) -> Inputs:
        """How a corpus' payloads become the network's inputs.

        Raises:
          InputError: if the network does not fit the corpus' feature.
        """
        preprocess, augment = (path and function_at(path) for path in (self.extras.preprocess, self.extras.augment))
        shape = () if preprocess else self._shape(feature)
        return Inputs(feature, shape, preprocess or None, augment or None)

    def _shape(self, feature: Feature) -> tuple[int, ...]:
        inputs = getattr(self.model, "inputs", None) or []
        shape = tuple(inputs[0].shape[1:]) if len(inputs) == 1 else None
        if shape and None in shape and len(shape) == len(self.extras.shape):
            shape = tuple(size or ours for size, ours in zip(shape, self.extras.shape, strict=True))
        fits = shape is not None and None not in shape and (inputs[0].dtype == "string") == (feature.kind == "text")
        right = {"image": len(shape or ()) == 3, "text": shape in ((), (1,)), "vector": shape == feature.shape}
        if shape is None or not fits or not right[feature.kind]:
            takes = ", ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in inputs) or "no fixed input"
            raise InputError(
                f"{self.name}: the network takes {takes}; found {feature.kind} of shape "
                f"{list(feature.shape)}. It must take one input: [batch, height, width, channels] for images, [batch, "
                f"dim] for vectors, strings [batch] or [batch, 1] for texts. For others give a --preprocess."
            )
        return shape

    def taken(self, kind: str) -> Feature:
        """Payloads of a kind as the network takes them: images of any size. `inputs` says whether it takes them."""
        if kind == "vector" and self.extras.preprocess:
            raise InputError(f"{self.name}: vectors that go through a --preprocess are embedded from a corpus only")
        inputs = getattr(self.model, "inputs", None) or []
        shape = tuple(inputs[0].shape[1:]) if inputs and not self.extras.preprocess else ()
        shapes = {"image": (None, None, *(shape[2:3] or (3,))), "text": (), "vector": shape[:1]}
        return Feature(kind=kind, shape=shapes[kind], dtype=DTYPES[kind])

    def save(self, path: Path) -> None:
        """Writes the checkpoint, and before it what belongs to it."""
        extras = path.parent / EXTRAS
        if self.extras != Extras():
            manifests.write(extras, self.extras)
        else:
            extras.unlink(missing_ok=True)  # of a network that was here before
        storage.write_checked(path, self.model.save)


EXTRAS = "network.json"
UNIT = 1e-3  # how far from 1 the length of an embedding may be, see unit_tolerance
UNIT_OF_HALF = 1e-2  # of numbers of 16 bits: bfloat16 rounds each by up to .4 %


def load_network(path: Path) -> Network:
    """Loads a .keras file, with Keras' safe mode on: no code from the file runs. Modules that network.json beside it
    names are imported."""
    if not path.exists():
        raise InputError(f"{path} is missing. Make a first checkpoint: python -m trainer.init --run_dir ...")
    _check_whole(path)
    local = storage.local_copy(path)
    if not zipfile.is_zipfile(local):
        size = path.stat().st_size
        raise InputError(f"{path} is not a Keras model: {size:,} bytes, no zip archive. Put the .keras file back.")
    extras = manifests.read_if_there(path.parent / EXTRAS, Extras) or Extras()
    for module in extras.imports:
        imported(module, path.parent / EXTRAS)
    return Network(load_model(local, path), path, extras)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copies a .keras file and what belongs to it."""
    _check_whole(source)
    extras, ours = source.parent / EXTRAS, target.parent / EXTRAS
    if extras.exists():
        storage.write_atomically(ours, functools.partial(shutil.copyfile, storage.local_copy(extras)))
    else:
        ours.unlink(missing_ok=True)
    storage.write_checked(target, functools.partial(shutil.copyfile, storage.local_copy(source)))


def _check_whole(path: Path) -> None:
    """Raises InputError if a checkpoint is not what `save` wrote. Nothing tells that of one that others wrote."""
    if storage.is_as_written(path) is False:
        checksum = path.with_suffix(".sha256")
        raise InputError(
            f"{path} was changed since it was written: {checksum.name} beside it is of another. Put the .keras file "
            f"back; or, if the change is meant, remove {checksum}, and an optimizer.npz there: it is of the other too."
        )


def load_model(local: Path, path: Path) -> keras.Model:
    """path: for errors."""
    try:
        return keras.saving.load_model(local, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        _, unknown, which = str(error).rpartition("Could not locate")  # the end of a long message
        if unknown:
            what = which.partition(". ")[0]
            raise InputError(
                f"{path} cannot be loaded: {unknown}{what}. Put @keras.saving.register_keras_serializable() above it. "
                f"Import its module first; a command does so by --import package.module"
            ) from None
        raise InputError(f"{path} is not a Keras model that can be loaded: {str(error)[:500]}") from None


def check_loads(path: Path) -> None:
    """For another process: raises InputError if it cannot load a checkpoint."""
    load_network(path)


def imported(module: str, by: Path | str) -> Any:
    """A module. by: who names it, for errors."""
    try:
        return importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise InputError(f"{by} names the module {module}: {error}. It must be importable from here.") from None


def function_at(path: str) -> Callable[..., Any]:
    """The function that `package.module:function` names."""
    module, _, name = path.partition(":")
    function = getattr(imported(module, path), name, None) if module and name else None
    if not callable(function):
        what = "no name" if function is None else f"a {type(function).__name__}"
        raise InputError(f"{path} is {what}, expected package.module:function, importable from here.")
    return function  # type: ignore[no-any-return]


def _layer_names(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if "name" in config and ("trainable" in config or "inbound_nodes" in config):
            yield config["name"]
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from _layer_names(value)


def _renamed(config: Any, names: dict[str, str]) -> Any:
    if isinstance(config, dict):
        return {key: _renamed(value, names) for key, value in config.items()}
    if isinstance(config, list):
        return [_renamed(value, names) for value in config]
    return names.get(config, config) if isinstance(config, str) else config


def layers_of(model: keras.Model) -> Iterator[keras.Layer]:
    """The layers of a model, and of the models in it, in order; each of those models comes after its layers."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)
        yield layer


def unit_tolerance(dtype: Any) -> float:
    """How far from 1 the length of an embedding of a dtype may be."""
    return UNIT_OF_HALF if keras.backend.standardize_dtype(dtype) in ("float16", "bfloat16") else UNIT


def output_dim(output: Any, name: Path | str) -> int:
    """How many numbers an embedding has. Raises InputError unless there is one vector an example."""
    shape = getattr(output, "shape", None)
    if shape is None or len(shape) != 2 or shape[1] is None:
        found = list(shape) if shape is not None else f"a {type(output).__name__}"
        raise InputError(
            f"{name}: the network gives {found}, expected [batch, dim]: one vector an example. End it with a pooling "
            f"layer or keras.layers.Flatten(), and keras.layers.UnitNormalization()."
        )
    return int(shape[1])
