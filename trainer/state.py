"""What a training run needs to go on: the optimizer beside a checkpoint, and the state within a round.

A training step is a function of (weights, optimizer, step), and batches of (seed, step): with these saved, an
interrupted run ends at the weights of an undisturbed one.
"""

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import command, records, storage

FORMAT = "triplet-miner-state/4"  # an epoch counts its steps without triplets
SAVE_SECONDS = 10.0  # between two saves, at the least; longer where saving takes long
SAVING_SHARE = 0.02  # of the time, at the most


def _read(path: Path) -> dict[str, np.ndarray] | None:
    try:
        return records.read_arrays(path)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile):
        command.log.warning("%s is damaged and left aside", path)
        return None


def _write(path: Path, variables: dict[str, Any], **others: Any) -> None:
    values: dict[str, Any] = {name: np.asarray(value) for name, value in others.items()}
    for group, of_it in variables.items():
        values |= {f"{group}/{i:05d}": variable.numpy() for i, variable in enumerate(of_it)}
    storage.write_atomically(path, lambda temporary: np.savez(temporary, **values))


def save_optimizer(optimizer: Any, directory: Path, digest: str) -> None:
    """The optimizer's variables beside the checkpoint they belong to: rounds are too short to start Adam anew."""
    _write(directory / "optimizer.npz", {"optimizer": optimizer.variables}, key=digest)


def restore_optimizer(optimizer: Any, model: Any, directory: Path, digest: str) -> None:
    """Takes up the state that `save_optimizer` left for the checkpoint with that digest, if it did."""
    path = directory / "optimizer.npz"
    optimizer.build(model.trainable_variables)
    values = _read(path)
    if values is None:
        return
    if str(values.get("key")) != digest:
        command.log.warning("%s does not belong to this checkpoint; the optimizer starts anew", path)
        return
    _assign(optimizer.variables, values, "optimizer")


def _assign(variables: Any, values: dict[str, np.ndarray], group: str) -> None:
    for i, variable in enumerate(variables):
        variable.assign(values[f"{group}/{i:05d}"])


class Resumable:
    """A run's state on disk: every variable of model and optimizer, `progress`, a dict for JSON, and stored rows.

    key: everything that shapes the run, for JSON; a state with another key is left aside.
    """

    def __init__(
        self, path: Path, key: Any, model: Any, optimizer: Any, progress: dict[str, Any],
        stored: np.ndarray | None = None,
    ):  # fmt: skip
        self.path, self.model, self.optimizer, self.progress = path, model, optimizer, progress
        self.arrays = {} if stored is None else {"stored": stored}
        self.key = records.sha256_of_json([FORMAT, key])
        self._saved, self._pause = time.monotonic(), SAVE_SECONDS

    def restore(self) -> bool:
        """Goes on where an interrupted run with the same key was, if there is one."""
        values = _read(self.path)
        if values is None or str(values.get("key")) != self.key:
            return False
        _assign(self.model.variables, values, "model")
        self.optimizer.build(self.model.trainable_variables)
        _assign(self.optimizer.variables, values, "optimizer")
        self.progress |= json.loads(str(values["progress"]))
        for name, array in self.arrays.items():
            array[...] = values[name]
        return True

    def save(self) -> None:
        started = time.monotonic()
        variables = {"model": self.model.variables, "optimizer": self.optimizer.variables}
        _write(self.path, variables, key=self.key, progress=json.dumps(self.progress), **self.arrays)
        self._saved = time.monotonic()
        self._pause = max(SAVE_SECONDS, (self._saved - started) / SAVING_SHARE)

    def save_when_due(self) -> None:
        if time.monotonic() - self._saved > self._pause:
            self.save()

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
