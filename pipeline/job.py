"""Running a Beam graph from a command: its options, its workers' errors and what they counted."""

import difflib
import logging
import re
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from apache_beam.runners.worker.statesampler import StateSampler

from pipeline import command, storage
from pipeline.records import InputError

# In this process every bundle waits at its end until the thread that samples what runs wakes up: 200 ms otherwise.
SAMPLING_MS = 10
StateSampler.__init__.__defaults__ = (SAMPLING_MS,)  # type: ignore[misc]

ANSWER_SECONDS = 10.0  # in which a job server must accept a connection
JOB_SERVERS = ("PortableRunner", "FlinkRunner", "SparkRunner")  # have options that Beam's Python side does not know
COUNTERS = "triplet-miner"
_DISK_ERROR = re.compile(r"(?:OSError|PermissionError|FileNotFoundError): (.*?)(?: \[while running|\n|$)", re.DOTALL)
_WORKER_ERROR = re.compile(r"InputError: (.*?)(?: \[while running|\n|$)", re.DOTALL)


def beam_options(arguments: list[str], ours: Sequence[str] = ()) -> PipelineOptions:
    """Beam's own options. The in-process runner is named: DirectRunner would first try to download another.

    ours: the names of the command's own options, for what was meant by one that is neither's.
    """
    # What goes wrong comes back as an exception; Beam would print it a first time, in fifty lines.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    if not any(argument.startswith("--runner") for argument in arguments):
        arguments = ["--runner=FnApiRunner", *arguments]
    options = PipelineOptions(arguments)
    serves = options.get_all_options()["runner"] in JOB_SERVERS
    known, value_may_follow = PipelineOptions([]).get_all_options(), False
    for argument in arguments:
        name, equals, _ = argument.removeprefix("--").removeprefix("no_").partition("=")
        understood = name in known if argument.startswith("--") else value_may_follow
        if serves and not understood:  # of these only what all but names one of ours can be told to be wrong
            understood = not difflib.get_close_matches(argument.partition("=")[0], ours, 1, 0.85)
        if not understood:
            raise InputError(command.unknown_option(argument, [*ours, *(f"--{name}" for name in known)]))
        value_may_follow = argument.startswith("--") and not equals
    _check_engine(options)
    return options


def _check_engine(options: PipelineOptions) -> None:
    """Raises InputError when what a runner needs on this machine is not there: Beam says so after minutes, or not."""
    given = options.get_all_options()
    runner = given["runner"].rpartition(".")[2]
    if runner in JOB_SERVERS:
        endpoint = options.view_as(PortableOptions).job_endpoint
        if endpoint and endpoint != "embed":
            host, _, port = endpoint.rpartition(":")
            try:
                socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
            except (OSError, ValueError) as error:
                raise InputError(
                    f"no job server answers at --job_endpoint {endpoint}: {error}. Start it (`make flink-up` starts "
                    f"one here, with a Flink), or mend the option; see docs/engines.md."
                ) from None
        elif runner == "PortableRunner" and not endpoint:
            raise InputError("--runner=PortableRunner needs --job_endpoint HOST:PORT of a job server: docs/engines.md")
        elif runner != "PortableRunner" and not shutil.which("java"):
            raise InputError(
                f"--runner={runner} starts a job server with java, and there is none. Install a Java 17 runtime "
                f"(Debian: openjdk-17-jre-headless), or give --job_endpoint of a job server that runs."
            )
    if runner == "DataflowRunner":
        try:
            import apitools.base  # noqa: F401
        except ImportError:
            raise InputError("--runner=DataflowRunner needs: pip install 'apache-beam[gcp]'") from None


def count(stage: str, unit: str, items: int, started: float) -> None:
    """In a worker: counts items for a stage, and the milliseconds since `started`, a time.monotonic()."""
    Metrics.counter(COUNTERS, f"{stage}/{unit}").inc(items)
    Metrics.counter(COUNTERS, stage).inc(round((time.monotonic() - started) * 1000))


@dataclass(frozen=True, kw_only=True)
class Worked:
    """What all workers together did in a stage, as their runner counted it; twice what was retried."""

    stage: str
    seconds: float
    items: int
    unit: str


def worked_of(counters: dict[str, int]) -> list[Worked]:
    """Of what `count` counted, in order of the stages' names."""
    return [
        Worked(stage=stage, seconds=counters.get(stage, 0) / 1000, items=items, unit=unit)
        for (stage, _, unit), items in sorted((name.partition("/"), value) for name, value in counters.items())
        if unit
    ]


def table(worked: Sequence[Worked]) -> list[str]:
    """What the workers did, a line a stage; nothing if they had nothing to do."""
    lines = [f"  {'workers':<9}{'items':>18}{'seconds':>10}{'a second':>12}"]
    for row in worked:
        rate = f"{row.items / row.seconds:,.0f}" if row.seconds else "-"
        lines.append(f"  {row.stage:<9}{f'{row.items:,} {row.unit}':>18}{row.seconds:>10.1f}{rate:>12}")
    return lines if worked else []


def run(options: PipelineOptions, graph: Callable[[beam.Pipeline], Any]) -> list[Worked]:
    """Builds and runs a graph, and waits for it. A worker's InputError comes back as one."""
    try:
        pipeline = beam.Pipeline(options=options)
        graph(pipeline)
        result = pipeline.run()
        with command.at_stop(result.cancel):  # on an engine the job would go on without us
            result.wait_until_finish()
        counters = result.metrics().query(MetricsFilter().with_namespace(COUNTERS))["counters"]
        return worked_of({counter.key.metric.name: counter.result for counter in counters})
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


def count_files(directory: Path, suffix: str) -> int:
    """How many finished files with that ending a directory holds; temporary names begin with a dot."""
    return sum(name.endswith(suffix) and not name.startswith(".") for name in storage.names(directory))
