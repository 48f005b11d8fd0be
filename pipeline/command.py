"""What every command shares: exit codes, the log, one at a time in a run directory, stopping in time, the summary.

| exit code | meaning                                                     | a schedule should      |
|-----------|-------------------------------------------------------------|------------------------|
| 0         | done, or nothing to do                                      | go on                  |
| 1         | the disk or the network refused, or a bug (see the log)     | retry, then tell       |
| 2         | a flag is missing or malformed                              | tell                   |
| 3         | stopped before `--deadline`, progress kept                  | run the same again     |
| 4         | an input or an option was refused: the message names it     | tell                   |
| 5         | another process holds the run directory                     | leave it alone         |
| 130, 143  | stopped by Ctrl-C or SIGTERM, progress kept                 | run the same again     |
"""

import argparse
import difflib
import fcntl
import gc
import importlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.records import InputError, write_json

LEASE = 120.0  # seconds that a lock on a remote run directory counts after it was renewed
LEAD = 5.0  # seconds before `--deadline` in which a command stops
SUMMARY_FORMAT = "triplet-miner-summary/1"

log = logging.getLogger("triplet-miner")
_facts: dict[str, Any] = {}  # for the summary
_summary_json: Path | None = None
_started = time.time()
_at_stop: list[Callable[[], Any]] = []
_signal: int | None = None  # the one that asked to stop
_stops_itself = False
_held = False


class Locked(InputError):
    """Another process works in the run directory."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """One line for most options: short names for their values, and room for both."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return {int: "N", float: "X", storage.location: "DIR"}.get(action.type, "TEXT")  # type: ignore[arg-type]


class Parser(argparse.ArgumentParser):
    """The options of one of our commands; an option that there is none of is met with the one that was meant."""

    def __init__(self, module: str, usage: str, description: str, **options: Any):
        super().__init__(
            prog=f"python -m {module}", usage=f"%(prog)s {usage}", description=textwrap.fill(description, 98),
            allow_abbrev=False, formatter_class=_Help, **options,
        )  # fmt: skip

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(unknown_option(rest[0], self.option_names()))
        return arguments

    def option_names(self) -> list[str]:
        return list(self._option_string_actions)


def unknown_option(found: str, known: Iterable[str]) -> str:
    """What to say of an option that there is none of."""
    near = difflib.get_close_matches(found.partition("=")[0], known, 1)
    return f"unknown option {found}; " + (f"did you mean {near[0]}?" if near else "--help lists what there is")


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("in a schedule")
    group.add_argument(
        "--summary_json", type=storage.location, metavar="FILE", help="write exit code, counts and times there"
    )
    group.add_argument("--deadline", metavar="TIME", help="stop before it, progress kept: 06:30, 2030-01-31T06:30")


def begin(arguments: argparse.Namespace) -> None:
    """Takes up the options of `add_options`."""
    global _summary_json
    _summary_json = arguments.summary_json
    _facts.update(run_dir=str(arguments.run_dir))
    if arguments.deadline:
        signal.signal(signal.SIGALRM, _stop)
        left = (parse_deadline(arguments.deadline, datetime.now().astimezone())).timestamp() - time.time() - LEAD
        signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))


def parse_deadline(text: str, now: datetime) -> datetime:
    """The next `HH:MM` in local time, or an ISO 8601 time; without an offset it is local."""
    try:
        if len(text) <= 5:
            clock = datetime.strptime(text, "%H:%M")
            then = now.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0)
            return then if then > now else then + timedelta(days=1)
        then = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"--deadline takes 06:30 or 2030-01-31T06:30:00+01:00; found {text!r}") from None
    return then if then.tzinfo else then.replace(tzinfo=now.tzinfo)


def note(**facts: Any) -> None:
    """Adds to what `--summary_json` gets."""
    _facts.update(facts)


def held_by_parent() -> None:
    """From here on `hold` does nothing: the process that started this one holds the run directory."""
    global _held
    _held = True


@contextmanager
def hold(run_dir: Path, what: str) -> Iterator[int]:
    """One process, and those it starts, at a time in a run directory. The kernel frees a dead holder's lock.

    Returns:
      The lock's file descriptor: the lock is free when the last process that has it open is gone. -1 for a remote
      directory, see `_lease`.
    Raises:
      Locked: naming the holder.
    """
    if _held:
        yield -1
        return
    if not storage.is_local(run_dir):
        with _lease(run_dir / ".lock", what):
            yield -1
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise Locked(_held_by(run_dir, holder)) from None
        file.truncate(0)
        file.write(f"{_who(what)}\n")
        file.flush()
        for left in run_dir.rglob(".*.tmp*"):  # by a holder that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        try:
            yield file.fileno()
        finally:
            file.truncate(0)


def _who(what: str) -> str:
    return f"{what}, process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%dT%H:%M:%S%z')}"


def _held_by(run_dir: Path, holder: str) -> str:
    return f"{run_dir} is held by {holder}. Wait until it is done, or stop it."


@contextmanager
def _lease(path: Path, what: str) -> Iterator[None]:
    """The lock where there is no flock: an object that its holder renews, and that counts for LEASE seconds.

    Not every store can create an object only if it is not there, so that of two that start within the same moment
    both may believe that they hold it: let a schedule not start two.
    """
    me = {"holder": _who(what), "host": socket.gethostname(), "process": os.getpid(), "token": os.urandom(8).hex()}

    def read() -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        except (FileNotFoundError, ValueError):
            return {}

    def is_alive(found: dict[str, Any]) -> bool:
        if not found or time.time() - found["renewed"] > LEASE:
            return False
        return bool(found["host"] != me["host"] or os.path.exists(f"/proc/{found['process']}"))

    def renew() -> None:
        path.write_text(json.dumps({**me, "renewed": time.time()}))

    def release() -> None:
        ended.set()
        if read().get("token") == me["token"]:
            path.unlink()

    found = read()
    if is_alive(found):
        raise Locked(_held_by(path.parent, found["holder"]))
    renew()
    if (now := read()).get("token") != me["token"]:
        raise Locked(_held_by(path.parent, now.get("holder", "another process")))
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(LEASE / 4):
            renew()

    threading.Thread(target=keep, daemon=True).start()
    with at_stop(release):
        try:
            yield
        finally:
            release()


@contextmanager
def at_stop(action: Callable[[], Any]) -> Iterator[None]:
    """While inside, `action` runs before a signal or the deadline ends this process."""
    _at_stop.append(action)
    try:
        yield
    finally:
        _at_stop.remove(action)


@contextmanager
def stops_itself() -> Iterator[Callable[[], bool]]:
    """For a loop that saves its state: inside, a stop is only noted. Ask the function, save, then call `stop`."""
    global _stops_itself
    _stops_itself = True
    try:
        yield lambda: _signal is not None
    finally:
        _stops_itself = False


def stop() -> None:
    """Ends the process as the signal that came asked for."""
    assert _signal is not None
    for action in reversed(_at_stop):
        action()
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")  # the cursor, which a progress bar hides
    at_deadline = _signal == signal.SIGALRM
    code = 3 if at_deadline else 128 + _signal
    why = "--deadline" if at_deadline else signal.Signals(_signal).name
    log.warning("stopped by %s; what was finished is kept, the same command continues", why)
    _finish(code, f"stopped by {why}")
    sys.stdout.flush()
    # Not sys.exit: Beam's threads would first finish what they work on. All files are written atomically.
    os._exit(code)


def _stop(number: int, frame: Any) -> None:
    global _signal
    _signal = number
    if not _stops_itself:
        stop()


def call(module: str, *arguments: object) -> int:
    """Runs one of our commands as a process. A stop is passed on to it. Returns its exit code."""
    child = subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)])

    def end() -> None:
        child.terminate()
        # Not child.wait: the handler interrupts the one below, which holds the lock that it takes.
        with suppress(ChildProcessError):
            os.waitpid(child.pid, 0)

    with at_stop(end):
        return child.wait()


def _finish(code: int, message: str) -> None:
    if _summary_json:
        times = {"started": _started, "seconds": round(time.time() - _started, 2)}
        summary = {"format": SUMMARY_FORMAT, "exit_code": code, "message": message, **times, **_facts}
        try:
            write_json(_summary_json, summary)
        except OSError as error:
            log.error("%s was not written: %s", _summary_json, error)


class _Stderr(logging.Handler):
    """Writes to what sys.stderr is at the time: a progress bar redirects it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def listen() -> None:
    """Sets up the log, and what signals do."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)


def once(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Runs a command; one line for whatever ends it. Returns its exit code, of those above."""
    code, message = 1, ""
    try:
        code = main(argv)
    except InputError as error:
        code, message = (5 if isinstance(error, Locked) else 4), str(error)
    except OSError as error:
        message = f"{error}. What was finished is kept; mend it and run the same command again."
    except Exception as error:
        log.exception("this is a bug, or the runner's own failure")
        message = f"{type(error).__name__}: {error}"
    if message:
        log.error("%s", message)
    _finish(code, message)
    return code


COMMANDS = {
    "ingest": "pipeline.ingest", "mine": "pipeline.mine", "embed": "pipeline.embed", "rounds": "pipeline.rounds",
    "records": "pipeline.records", "report": "pipeline.report", "doctor": "pipeline.doctor", "train": "trainer.train",
    "evaluate": "trainer.evaluate",
}  # fmt: skip


def console() -> None:
    """`triplet-mine` and the others: which it is, the name says under which it was started."""
    run(importlib.import_module(COMMANDS[Path(sys.argv[0]).stem.removeprefix("triplet-")]).main)


def run(main: Callable[[list[str]], int]) -> None:
    """Runs a command as this process."""
    listen()
    note(command=Path(sys.argv[0]).stem, arguments=sys.argv[1:])
    code = once(main, sys.argv[1:])
    gc.freeze()  # else the interpreter spends a second on a last search for garbage among TensorFlow's objects
    sys.exit(code)
