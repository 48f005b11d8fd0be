"""Rounds that are stopped at chosen messages of the log, which every command writes as it goes on: their end."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.embedding.network import load_network
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.mining.manifest import TripletsManifest
from pipeline.process.commands import log
from pipeline.reporting.results import Best, Evaluation
from trainer.rounds import Plan

# A recipe whose rounds take a second or two.
QUICK = """
[warmup]
steps = 3
[mining]
margin = 1.0
anchors = 60
[packing]
pack_rows = 32
fill = 2
"""


def outcome(run_dir: Path) -> Any:
    """Of every round: the digests of its checkpoint and of its triplets, the optimizer's variables, its quality. And
    the best one, and the plan."""
    found = []
    for round in Run(run_dir).rounds():
        with np.load(round.optimizer) as file:
            variables = [file[name].tobytes() for name in file.files]
        mined = manifests.read_if_there(round.manifest, TripletsManifest)
        quality = manifests.read_if_there(round.evaluation("validation"), Evaluation)
        digest = load_network(round.checkpoint).digest()
        found.append((digest, variables, mined and mined.triplet_digest, quality and quality.measures))
    return found, manifests.read(Run(run_dir).best, Best), manifests.read(Run(run_dir).plan, Plan)


class _At(logging.Handler):
    def __init__(self, act: Callable[[str], None]):
        super().__init__()
        self.act = act

    def emit(self, record: logging.LogRecord) -> None:
        self.act(record.getMessage())


@contextmanager
def at_messages(act: Callable[[str], None]) -> Iterator[None]:
    """Calls a function with each message of the log while inside; what it raises ends what wrote the message."""
    handler, level = _At(act), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def ctrl_c_at(beginning: str) -> Iterator[None]:
    """Sends this process what Ctrl-C does as soon as a message begins so."""

    def act(message: str) -> None:
        if message.startswith(beginning):
            os.kill(os.getpid(), signal.SIGINT)

    with at_messages(act):
        yield


def stops(every: int) -> Iterator[Callable[[str], None]]:
    """For `at_messages`, again and again: each raises KeyboardInterrupt at one more new message, and at no older one.

    every: 1 stops at all messages, 3 at each third.
    """
    seen: set[str] = set()

    def act(message: str) -> None:
        if message not in seen:
            seen.add(message)
            if len(seen) % every == 0:
                raise KeyboardInterrupt(message)

    while True:
        yield act
