"""What a training run needs to go on: the optimizer beside a checkpoint, and the state within a round.

A training step is a function of (weights, optimizer, step), and batches of (seed, step): with these saved, an
interrupted run ends at the weights of an undisturbed one. One .npz, so that it is whole or not there, in a bucket too:
tf.train.Checkpoint writes several files, and not to fsspec's stores.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import msgspec
import numpy as np

from pipeline.errors import InputError
from pipeline.files import storage
from pipeline.files.manifests import sha256_of_json
from pipeline.process.commands import log

FORMAT = "triplet-miner-state/5"
SAVE_SECONDS = 10.0  # between two saves, at the least
SAVING_SHARE = 0.02  # of the time, at the most


def _names(group: str, variables: Any) -> list[str]:
    return [f"{group}/{i:05d}" for i in range(len(variables))]


def _named(group: str, variables: Any) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in zip(_names(group, variables), variables, strict=True)}


def _assign(variables: Any, values: dict[str, np.ndarray], group: str) -> None:
    for name, variable in zip(_names(group, variables), variables, strict=True):
        variable.assign(values[name])


def _read(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of a file. Raises InputError if it is damaged, or if one of these is not among them."""
    values = storage.read_arrays(path)
    if missing := sorted(set(names) - values.keys()):
        raise InputError(f"{path} lacks {missing[0]}: it is damaged, or of another optimizer. {storage.MEND}")
    return values


def _kind(optimizer: Any) -> str:
    """What two optimizers have in common if one can take up the other's variables."""
    return f"{type(optimizer).__name__} {[tuple(variable.shape) for variable in optimizer.variables]}"


def save_optimizer(optimizer: Any, path: Path, digest: str) -> None:
    """The optimizer's variables beside the checkpoint they belong to: rounds are too short to start Adam anew."""
    variables = _named("optimizer", optimizer.variables)
    storage.save_arrays(path, key=np.array(digest), kind=np.array(_kind(optimizer)), **variables)


def restore_optimizer(optimizer: Any, model: keras.Model, path: Path, digest: str) -> None:
    """Takes up the state that `save_optimizer` left for the checkpoint with that digest, if it did. That of another
    kind of optimizer, as a warm-up's Adam is for RMSprop, is left aside.

    Raises:
      InputError: if it is damaged or of another checkpoint: without it the weights would end elsewhere.
    """
    optimizer.build(model.trainable_variables)
    if not path.exists():
        return
    values = _read(path, ["key", "kind"])
    if str(values["key"]) != digest:
        raise InputError(
            f"{path} belongs to checkpoint {str(values['key'])[:12]}, not to {digest[:12]} beside it. Put the one of "
            f"this checkpoint back, or remove it: then the optimizer starts anew."
        )
    if str(values["kind"]) != _kind(optimizer):
        log.info("%s is of another optimizer: %s starts anew", path, type(optimizer).__name__)
        return
    _assign(optimizer.variables, values, "optimizer")


class Resumable:
    """A run's state on disk: every variable of model and optimizer, others that change, and `progress`.

    optimizer: built. key: everything that shapes the run, for JSON; a state with another key is left aside. progress: a
    dataclass for JSON. seconds: between two saves, at the least. more: variables.
    """

    def __init__(
        self, path: Path, key: Any, model: keras.Model, optimizer: Any, progress: Any, seconds: float = SAVE_SECONDS,
        more: Sequence[Any] = (),
    ):  # fmt: skip
        self.path, self.model, self.optimizer, self.progress = path, model, optimizer, progress
        self.more = more
        self.key = sha256_of_json([FORMAT, key])
        self.seconds, self._saved, self._pause = seconds, time.monotonic(), seconds

    def _groups(self) -> dict[str, Sequence[Any]]:
        return {"model": self.model.variables, "optimizer": self.optimizer.variables, "more": self.more}

    def restore(self) -> bool:
        """Goes on where an interrupted run with the same key was, if there is one. A damaged state is left aside: from
        the start the run ends at the same weights."""
        if not self.path.exists():
            return False
        variables = [name for group, own in self._groups().items() for name in _names(group, own)]
        try:
            values = _read(self.path, ["key", "progress", *variables])
        except InputError as error:
            log.warning("%s It is left aside.", error)
            return False
        if str(values["key"]) != self.key:
            return False
        for group, own in self._groups().items():
            _assign(own, values, group)
        self.progress = msgspec.json.decode(str(values["progress"]), type=type(self.progress))
        return True

    def save(self) -> None:
        started = time.monotonic()
        variables = {k: v for group, own in self._groups().items() for k, v in _named(group, own).items()}
        progress = np.array(msgspec.json.encode(self.progress).decode())
        storage.save_arrays(self.path, key=np.array(self.key), progress=progress, **variables)
        self._saved = time.monotonic()
        self._pause = max(self.seconds, (self._saved - started) / SAVING_SHARE)

    def is_due(self) -> bool:
        return time.monotonic() - self._saved > self._pause

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
