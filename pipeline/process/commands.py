"""What every command shares: exit codes, the log, stopping.

| exit code | meaning                                                     | a schedule should      |
|-----------|-------------------------------------------------------------|------------------------|
| 0         | done, or nothing to do                                      | go on                  |
| 1         | the disk or the network refused, or a bug (see the log)     | retry, then tell       |
| 2         | an option is missing, malformed or out of its range         | tell                   |
| 4         | an input was refused: the message names it                  | tell                   |
| 5         | another process holds the run directory                     | leave it alone         |
| 130, 143  | stopped by Ctrl-C or SIGTERM, progress kept                 | run the same again     |
| 137       | stopped so in the middle of something long; or killed       | run the same again     |

The last three are what a shell says of a process that a signal ended. A command ends within ten seconds of one, and at
once when another comes while it stops.
"""

import importlib
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

from pipeline.errors import InputError

log = logging.getLogger("triplet-miner")


class Stopped(BaseException):
    """By a signal, which is its argument."""


STOPS = (signal.SIGTERM, signal.SIGINT)
STOP_SECONDS = 8.0  # after a signal, in which a command may save and end by itself
LEAVE_SECONDS = 1.0  # to stop workers and say so
REPEAT_SECONDS = 1.0  # in which a signal that comes again is the same one: `timeout` sends it twice
_before_stop: list[Callable[[], Any]] = []


@contextmanager
def postponed_stop(save: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """For a loop that can go on where it was: SIGTERM and Ctrl-C wait until it calls the function that it is given,
    which then saves and ends the block.

    The block ends with Stopped, or with what the handlers from before raise; what came to its end before it called is
    not undone. Outside the main thread, which alone gets signals, nothing is postponed.
    """
    asked: list[signal.Signals] = []
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, lambda n, _: asked.append(signal.Signals(n))) for number in STOPS if main}

    def stop_if_asked() -> None:
        if asked:
            save()
            raise Stopped(asked[0])

    try:
        yield stop_if_asked
    except Stopped:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        handler = before[asked[0]]
        if callable(handler):
            handler(asked[0], None)
        else:
            signal.raise_signal(asked[0])
        raise Stopped(asked[0])


@contextmanager
def before_stop(action: Callable[[], Any]) -> Iterator[None]:
    """While inside, `action` runs before a signal ends this process."""
    _before_stop.append(action)
    try:
        yield
    finally:
        _before_stop.remove(action)


def _stop(number: int, frame: Any) -> None:
    """Ends by the signal's own action, at once: an exception would pass through Beam, which takes it for a step's own,
    and would wait for the steps of other threads."""
    for stop in STOPS:
        signal.signal(stop, lambda *_: None)  # `_watch` sees another one
    for action in _before_stop:
        with suppress(Exception):
            action()
    with suppress(Exception):  # nobody may read any more what is said
        _leave(number)
        sys.stdout.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)  # of process 1 of a container, which signals do not end


def _watch(signals: int) -> None:
    """Ends the process where Python's handler of a signal does not: that runs between two bytecodes of the
    main thread, and a long step, save or compile is one. Files have temporary names until they are whole.

    signals: a pipe, from which the numbers of signals are read.
    """
    while (number := os.read(signals, 1)[0]) not in STOPS:
        pass
    time.sleep(REPEAT_SECONDS)
    while select.select([signals], [], [], 0)[0]:
        os.read(signals, 1)
    select.select([signals], [], [], STOP_SECONDS - REPEAT_SECONDS)
    saying = threading.Thread(target=_leave, args=[number, " in the middle of something long"], daemon=True)
    saying.start()
    saying.join(LEAVE_SECONDS)  # what is said may find nobody that reads it
    os.kill(os.getpid(), signal.SIGKILL)  # only the main thread could set the signal's own action


def _leave(number: int, where: str = "") -> None:
    """Stops the workers, and says so."""
    for worker in psutil.Process().children(recursive=True):  # Beam's
        with suppress(psutil.Error):
            worker.terminate()
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")  # the cursor, which a progress bar hides
    name = signal.Signals(number).name
    log.warning("stopped by %s%s; what was finished is kept, the same command continues", name, where)


def show(result: Any, as_json: bool) -> None:
    """Prints what a command's function returned: a dataclass whose text is its summary."""
    print(msgspec.json.encode(result).decode() if as_json else result)


class _Stderr(logging.Handler):
    """Writes to what sys.stderr is at the time: a progress bar redirects it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def console() -> None:
    """`triplet-mine` and the others: which it is, the name says under which it was started."""
    os.environ["PYTHONSAFEPATH"] = "1"  # Beam's workers are not to find a user's own `pipeline.py` here
    name = Path(sys.argv[0]).stem.removeprefix("triplet-")
    package = "trainer" if name in ("init", "warmup", "train", "evaluate") else "pipeline"
    run(importlib.import_module(f"{package}.{name}").main)


def run(main: Callable[[list[str]], int]) -> None:
    """Runs a command as this process: one line for whatever ends it."""
    _set_up()
    code = 1
    try:
        code = main(sys.argv[1:])
    except InputError as error:
        log.error("%s", error)
        code = error.exit_code
    except OSError as error:
        log.error("%s. What was finished is kept; mend it and run the same command again.", error)
    except Exception as error:
        log.exception("this is a bug, or the runner's own failure: %s: %s", type(error).__name__, error)
    sys.exit(code)


def _set_up() -> None:
    """The log, what signals do, and less of what libraries print while they start."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("apitools not found"))
    # What goes wrong comes back as an exception; Beam would print it a first time, in fifty lines.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # a miner and a trainer share a GPU
    signals, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written)
    threading.Thread(target=_watch, args=[signals], daemon=True).start()
    for number in STOPS:
        signal.signal(number, _stop)
