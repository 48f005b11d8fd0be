"""Running a Beam graph from a command: its options, its progress on the screen, its workers' errors."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import command, storage
from pipeline.records import InputError

JOB_SERVERS = ("PortableRunner", "FlinkRunner", "SparkRunner")  # have options that Beam's Python side does not know
COUNTERS = "triplet-miner"
_DISK_ERROR = re.compile(r"(?:OSError|PermissionError|FileNotFoundError): (.*?)(?: \[while running|\n|$)", re.DOTALL)
_WORKER_ERROR = re.compile(r"InputError: (.*?)(?: \[while running|\n|$)", re.DOTALL)


def beam_options(arguments: list[str]) -> PipelineOptions:
    """Beam's own options. The in-process runner is named: DirectRunner would first try to download another."""
    if not any(argument.startswith("--runner") for argument in arguments):
        arguments = ["--runner=FnApiRunner", *arguments]
    options = PipelineOptions(arguments)
    if options.get_all_options()["runner"] not in JOB_SERVERS:
        known, value_may_follow = PipelineOptions([]).get_all_options(), False
        for argument in arguments:
            name, equals, _ = argument.removeprefix("--").removeprefix("no_").partition("=")
            understood = name in known if argument.startswith("--") else value_may_follow
            if not understood:
                raise InputError(f"unknown option {argument}. --help lists ours; Beam's own are in its documentation.")
            value_may_follow = argument.startswith("--") and not equals
    return options


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """In a worker: adds the block's time to the stage's counter, in milliseconds."""
    started = time.monotonic()
    yield
    Metrics.counter(COUNTERS, stage).inc(round((time.monotonic() - started) * 1000))


def run(options: PipelineOptions, graph: Callable[[beam.Pipeline], Any]) -> dict[str, int]:
    """Builds and runs a graph, and waits for it. A worker's InputError comes back as one.

    Returns:
      What `timed` counted, summed over all workers.
    """
    # What goes wrong comes back as the exception below; Beam would print it a first time, in fifty lines.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    try:
        pipeline = beam.Pipeline(options=options)
        graph(pipeline)
        result = pipeline.run()
        with command.at_stop(result.cancel):  # on an engine the job would go on without us
            result.wait_until_finish()
        counters = result.metrics().query(MetricsFilter().with_namespace(COUNTERS))["counters"]
        return {counter.key.metric.name: counter.result for counter in counters}
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


@contextmanager
def progress(*stages: tuple[str, int, Callable[[], int]]) -> Iterator[None]:
    """Shows (name, items in all, items done so far) while the block runs.

    What is done is counted from files, so it is the same for every runner.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    stopped = threading.Event()
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks = [bars.add_task(name, total=total, start=False) for name, total, _ in stages]

        def watch() -> None:
            plain = [-1] * len(stages)
            while not stopped.wait(0.25 if console.is_terminal else 2.0):
                for i, (task, (name, total, done)) in enumerate(zip(tasks, stages, strict=True)):
                    count = done()
                    if count and not bars.tasks[i].started:
                        bars.start_task(task)
                    bars.update(task, completed=count)
                    if not console.is_terminal and count not in (plain[i], 0):
                        command.log.info("%s: %d of %d", name, count, total)
                        plain[i] = count

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


def count_files(directory: Path, suffix: str) -> int:
    """How many finished files with that ending a directory holds; temporary names begin with a dot."""
    return sum(name.endswith(suffix) and not name.startswith(".") for name in storage.names(directory))
