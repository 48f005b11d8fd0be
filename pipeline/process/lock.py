"""One miner and one trainer at a time in a run directory. On Linux and macOS: the kernel frees a dead holder's lock.

In a bucket there is no lock. Two miners there that start together, on machines of one kind, write the same bytes; the
one that ends first removes what the other works with, so that this one fails, and finds the round mined when it is
started again.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.errors import Locked
from pipeline.files.layout import Run
from pipeline.files.storage import check_writable, is_local, remove_leftovers

MINER, TRAINER = "mine", "train"


@contextmanager
def hold(run_dir: Path, *roles: str) -> Iterator[None]:
    """Holds the run directory in these roles while inside. Leftovers of dead processes go.

    Raises:
      Locked: naming the holder.
      InputError: if this user may not write there.
    """
    if not is_local(run_dir):
        yield
        return
    check_writable(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for role in roles:
            held.enter_context(_hold(Run(run_dir), role))
        for folder in Run(run_dir).folders():
            remove_leftovers(folder)
        yield


@contextmanager
def _hold(run: Run, role: str) -> Iterator[None]:
    with open(run.lock(role), "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise Locked(f"{run.path} is held by {holder}. Wait until it is done, or stop it.") from None
        file.truncate(0)
        since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        try:
            file.write(f"a process that may {role}: {os.getpid()} on {socket.gethostname()}, since {since}\n")
            file.flush()
        except OSError as error:  # a full disk names no file
            raise OSError(error.errno, error.strerror, file.name) from None
        try:
            yield
        finally:
            file.truncate(0)
