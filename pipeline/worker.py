"""A process that stays alive and runs one of our commands after the other: TensorFlow and Beam start once.

`python -m pipeline.worker REPLY MODULE` imports MODULE, reads calls from stdin, a line of JSON each, and writes exit
codes to the file descriptor REPLY. It ends with its stdin, so it does not outlive its parent by more than a call.
"""

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress

from pipeline import command

DEATHS = 3  # of a worker, one after the other, that are put up with


class Worker:
    """Runs our commands, one at a time, in one process; in another one if that is killed.

    module: the command that it will be called for first; the process starts at once, and imports that meanwhile.
    lock: the file descriptor of the run directory's lock. The process holds it too, and takes no lock of its own.
    quiet: only errors, for two that would draw their bars on one screen.
    """

    def __init__(self, module: str, lock: int, quiet: bool = False):
        self._module, self._lock, self._quiet = module, lock, quiet
        self._process: subprocess.Popen[str] | None = None
        self._calling = self._ended = False
        self._start()

    def call(self, module: str, *arguments: object) -> int:
        """`python -m module arguments`, without its output. Returns the exit code.

        A command that is killed is started again: all of ours go on where they were.
        """
        for _ in range(DEATHS):
            if self._ended:  # by another thread
                return 1
            self._start()
            assert self._process and self._process.stdin
            with suppress(BrokenPipeError, ValueError):  # it has ended; or `end` has closed the pipe
                self._process.stdin.write(json.dumps([module, *map(str, arguments)]) + "\n")
                self._process.stdin.flush()
            self._calling = True
            answer = self._replies.readline()
            self._calling = False
            if answer:
                return int(answer)
            code = self._process.wait()
            if code >= 0:  # it ended by itself: a stop, which has said so
                return code
            self._process = None
            command.log.warning("%s was killed by %s; it is started again", module, signal.Signals(-code).name)
        return 1

    def _start(self) -> None:
        """Starts the process if there is none, and does not wait for it."""
        if self._process and self._process.poll() is None:
            return
        read, write = os.pipe()
        kept = [write, self._lock] if self._lock >= 0 else [write]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.worker", str(write), self._module, *(["quiet"] if self._quiet else [])],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, pass_fds=kept,
            env=os.environ | ({"TTY_COMPATIBLE": "0"} if self._quiet else {}),
        )  # fmt: skip
        os.close(write)
        self._replies = os.fdopen(read, encoding="utf-8")
        if self._ended:  # meanwhile
            self.end()

    def end(self) -> None:
        """Ends the process, for good; a command in it saves its state first."""
        self._ended = True
        if self._process and self._process.poll() is None:
            if self._calling:
                self._process.terminate()
            assert self._process.stdin
            self._process.stdin.close()
            # Not Popen.wait: called by a signal handler, it may wait for a lock that the interrupted code holds.
            with suppress(ChildProcessError):
                os.waitpid(self._process.pid, 0)


def serve(reply: int) -> None:
    """Answers calls until stdin ends."""
    command.held_by_parent()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # every call has its own model, and traces it anew
    for line in sys.stdin:
        module, *argv = json.loads(line)
        code = command.once(importlib.import_module(module).main, argv)
        if "keras" in sys.modules:
            sys.modules["keras"].backend.clear_session()  # what the last call's model left behind
        os.write(reply, f"{code}\n".encode())


if __name__ == "__main__":
    command.listen()
    if sys.argv[3:]:
        command.log.setLevel("ERROR")
    importlib.import_module(sys.argv[2])
    serve(int(sys.argv[1]))
