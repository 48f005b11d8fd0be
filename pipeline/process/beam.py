"""Running a Beam graph from a command: its options, its workers' errors and what they counted."""

import contextlib
import difflib
import functools
import math
import re
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import apache_beam as beam
import psutil
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.runners.portability import portable_runner

from pipeline.errors import InputError, WrongOption
from pipeline.process.commands import before_stop, log
from pipeline.process.engines import ENGINES, JOB_SERVERS, Engine, check, runner_of
from pipeline.process.options import names, unknown

IN_PROCESS = ["--runner=FnApiRunner"]
LOOK_SECONDS = 0.5  # between two looks at worker processes
LOST_SECONDS = 15.0  # after one of them ended, in which Beam is to be done or to end the next
WORKER = "apache_beam.runners.worker.sdk_worker_main"  # on the command line of a process
NOT_FETCHED = "Unable to fetch remote"  # how Beam begins when it can neither find nor fetch a job server
_DISK_ERROR = re.compile(r"(?:OSError|PermissionError|FileNotFoundError): (.*?)(?: \[while running|\n|$)", re.DOTALL)
_WORKER_ERROR = re.compile(r"InputError: (.*?)(?: \[while running|\n|$)", re.DOTALL)


def in_process() -> PipelineOptions:
    """For a graph that runs in this process. The runner is named: DirectRunner would first try to download another."""
    return PipelineOptions(IN_PROCESS)


def beam_options(arguments: list[str], command: Any) -> PipelineOptions:
    """Beam's own options; those of `in_process` if no runner is among them.

    command: the command's own options, for what was meant by one that is neither's.
    """
    ours = names(command)
    if not any(argument.startswith("--runner") for argument in arguments):
        arguments = [*IN_PROCESS, *arguments]
    if not any(argument.startswith("--job_name") for argument in arguments):  # it is found on Flink by its name
        arguments = [*arguments, f"--job_name=triplet-miner-{uuid.uuid4().hex[:12]}"]
    options = PipelineOptions(arguments)
    serves = runner_of(options) in JOB_SERVERS  # these have options that Beam's Python does not know
    known, value_may_follow = PipelineOptions([]).get_all_options(), False
    for argument in arguments:
        name, equals, _ = argument.removeprefix("--").removeprefix("no_").partition("=")
        understood = name in known if argument.startswith("--") else value_may_follow
        if serves and not understood:  # of these only what all but names one of ours can be told to be wrong
            understood = not difflib.get_close_matches(argument.partition("=")[0], ours, 1, 0.85)
        if not understood:
            raise WrongOption(unknown(argument, [*ours, *(f"--{name}" for name in known)]))
        value_may_follow = argument.startswith("--") and not equals
    check(options)
    return options


def _run(pipeline: beam.Pipeline) -> None:
    """Hands the graph to the runner and waits. On an engine the job would go on without us: it is cancelled before a
    signal ends this process."""
    engine, result = Engine.of(pipeline.options), None
    stops = engine.runner in ENGINES
    with before_stop(lambda: engine.cancel(result)) if stops else contextlib.nullcontext():
        try:
            result = pipeline.run()
        except RuntimeError as error:
            if str(error).startswith(NOT_FETCHED):
                raise engine.not_fetched(error) from None
            raise
        result.wait_until_finish()
    if engine.runner == "DirectRunner":  # Beam does not say it
        on_prism = isinstance(result, portable_runner.PipelineResult)
        log.info("DirectRunner: it ran %s", "on Prism" if on_prism else "in this process, for want of a Prism")


def _with_workers(work: Callable[[], None], workers: int) -> None:
    """Runs Beam in a thread and looks after its worker processes: for one that was killed it would wait forever.

    Raises:
      OSError: if one is gone, and within LOST_SECONDS neither Beam is done nor another is gone: it ends them in turn.
    """
    done, seen, lost, last_lost = Future[None](), set[psutil.Process](), 0, math.inf

    def work_and_tell() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:  # it is raised where the result is asked for
            done.set_exception(error)

    threading.Thread(target=work_and_tell, daemon=True).start()
    while not wait([done], LOOK_SECONDS).done:
        alive = _workers()
        seen |= alive
        if len(seen - alive) > lost:
            lost, last_lost = len(seen - alive), time.monotonic()
        if time.monotonic() - last_lost > LOST_SECONDS:
            for worker in alive:
                with contextlib.suppress(psutil.Error):
                    worker.kill()
            raise OSError(
                f"a worker process of Beam was killed, most likely for lack of memory. Give fewer workers "
                f"(--direct_num_workers, now {workers}), or more memory"
            )
    done.result()


def _workers() -> set[psutil.Process]:
    """Beam's, that this process started."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if WORKER in " ".join(process.cmdline()):
                found.add(process)
    return found


def run(options: PipelineOptions, graph: Callable[[beam.Pipeline], Any]) -> None:
    """Builds and runs a graph, and waits for it. A worker's InputError comes back as one."""
    try:
        pipeline = beam.Pipeline(options=options)
        graph(pipeline)
        given = options.view_as(DirectOptions)
        if given.direct_running_mode == "multi_processing":
            _with_workers(functools.partial(_run, pipeline), given.direct_num_workers)
        else:
            _run(pipeline)
    except Exception as error:
        # Runners add the step to a worker's error, or hand it over as text inside an error of their own.
        match = _WORKER_ERROR.search(f"{type(error).__name__}: {error}")
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from None
        if match:
            raise InputError(match[1].strip()) from None
        refused = _DISK_ERROR.search(f"{type(error).__name__}: {error}")
        if refused:
            raise OSError(refused[1].strip()) from None
        raise
