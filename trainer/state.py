"""What a training run needs to go on: the optimizer beside a checkpoint, and the state within a round.

A training step is a function of (weights, optimizer, step), and batches of (seed, step): with these saved, an
interrupted run ends at the weights of an undisturbed one. One .npz, so that it is whole or not there, in a bucket too:
tf.train.Checkpoint writes several files, and not to fsspec's stores.
"""

import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import msgspec
import numpy as np

from pipeline.files import storage
from pipeline.files.manifests import sha256_of_json
from pipeline.process.commands import log

FORMAT = "triplet-miner-state/5"
SAVE_SECONDS = 10.0  # between two saves, at the least
SAVING_SHARE = 0.02  # of the time, at the most


def _read(path: Path) -> dict[str, np.ndarray] | None:
    try:
        return storage.read_arrays(path)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError, zipfile.BadZipFile):
        log.warning("%s is damaged and left aside", path)
        return None


def _named(group: str, variables: Any) -> dict[str, np.ndarray]:
    return {f"{group}/{i:05d}": variable.numpy() for i, variable in enumerate(variables)}


def _assign(variables: Any, values: dict[str, np.ndarray], group: str) -> None:
    for i, variable in enumerate(variables):
        variable.assign(values[f"{group}/{i:05d}"])


def save_optimizer(optimizer: Any, path: Path, digest: str) -> None:
    """The optimizer's variables beside the checkpoint they belong to: rounds are too short to start Adam anew."""
    storage.save_arrays(path, key=np.array(digest), **_named("optimizer", optimizer.variables))


def restore_optimizer(optimizer: Any, model: keras.Model, path: Path, digest: str) -> None:
    """Takes up the state that `save_optimizer` left for the checkpoint with that digest, if it did."""
    optimizer.build(model.trainable_variables)
    values = _read(path)
    if values is None:
        return
    if str(values.get("key")) != digest:
        log.warning("%s does not belong to this checkpoint; the optimizer starts anew", path)
        return
    _assign(optimizer.variables, values, "optimizer")


class Resumable:
    """A run's state on disk: every variable of model and optimizer, others and arrays that change, and `progress`.

    key: everything that shapes the run, for JSON; a state with another key is left aside. progress: a dataclass for
    JSON. seconds: between two saves, at the least. more: variables. arrays: by name.
    """

    def __init__(
        self, path: Path, key: Any, model: keras.Model, optimizer: Any, progress: Any, seconds: float = SAVE_SECONDS,
        more: Sequence[Any] = (), arrays: Mapping[str, np.ndarray] | None = None,
    ):  # fmt: skip
        self.path, self.model, self.optimizer, self.progress = path, model, optimizer, progress
        self.more, self.arrays = more, arrays or {}
        self.key = sha256_of_json([FORMAT, key])
        self.seconds, self._saved, self._pause = seconds, time.monotonic(), seconds

    def restore(self) -> bool:
        """Goes on where an interrupted run with the same key was, if there is one."""
        values = _read(self.path)
        if values is None or str(values.get("key")) != self.key:
            return False
        _assign(self.model.variables, values, "model")
        self.optimizer.build(self.model.trainable_variables)
        _assign(self.optimizer.variables, values, "optimizer")
        _assign(self.more, values, "more")
        self.progress = msgspec.json.decode(str(values["progress"]), type=type(self.progress))
        for name, array in self.arrays.items():
            array[...] = values[name]
        return True

    def save(self) -> None:
        started = time.monotonic()
        variables = _named("model", self.model.variables) | _named("optimizer", self.optimizer.variables)
        variables |= _named("more", self.more)
        progress = np.array(msgspec.json.encode(self.progress).decode())
        storage.save_arrays(self.path, key=np.array(self.key), progress=progress, **variables, **self.arrays)
        self._saved = time.monotonic()
        self._pause = max(self.seconds, (self._saved - started) / SAVING_SHARE)

    def save_when_due(self) -> None:
        if time.monotonic() - self._saved > self._pause:
            self.save()

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
