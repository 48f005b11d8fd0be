"""Engines: what they need to be there before a job is handed to one, and an end of the job when we are stopped."""

import contextlib
import json
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from apache_beam.runners.runner import PipelineState

from pipeline.errors import InputError
from pipeline.process.commands import log

JOB_SERVERS = ("PortableRunner", "FlinkRunner", "SparkRunner", "PrismRunner")  # these take a --job_endpoint
STARTED = {  # which option names the file that is started here where there is no --job_endpoint
    "FlinkRunner": "flink_job_server_jar", "SparkRunner": "spark_job_server_jar", "PrismRunner": "prism_location",
}  # fmt: skip
ENGINES = (*JOB_SERVERS, "DataflowRunner")
HERE = ("DirectRunner", "FnApiRunner")  # these run on this machine
ANSWER_SECONDS = 10.0  # in which a job server must accept a connection
CANCEL_SECONDS = 6.0  # in which a job must have ended: less than a command has after a signal
ASK_SECONDS = 1.0  # in which Flink must answer
LOOK_SECONDS = 0.1
ENDED = ("CANCELED", "FAILED", "FINISHED")  # states of a job on Flink


def check(options: PipelineOptions) -> None:
    """Raises InputError when what a runner needs on this machine is not there: Beam says so after minutes, or not."""
    runner = runner_of(options)
    endpoint = options.view_as(PortableOptions).job_endpoint
    if runner == "DataflowRunner":
        try:
            import apitools.base  # noqa: F401
        except ImportError:
            raise InputError("--runner=DataflowRunner needs: pip install 'apache-beam[gcp]'") from None
    if runner not in JOB_SERVERS or endpoint == "embed":
        return
    if endpoint:
        host, _, port = endpoint.rpartition(":")
        try:
            socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
        except (OSError, ValueError) as error:
            raise InputError(
                f"no job server answers at --job_endpoint {endpoint}: {error}. Start it (`make engine-flink`, "
                f"engine-spark or engine-prism starts one here), or mend the option; see docs/engines.md."
            ) from None
    elif runner == "PortableRunner":
        raise InputError("--runner=PortableRunner needs --job_endpoint HOST:PORT of a job server: docs/engines.md")
    else:
        option = STARTED[runner]
        file = options.get_all_options()[option]
        if file and "://" not in file and not Path(file).is_file():
            raise InputError(f"--{option} {file}: no such file. {_way_out(runner)}")
        if runner != "PrismRunner" and not shutil.which("java"):
            raise InputError(
                f"--runner={runner} starts a job server with java, and there is none. Install a Java 17 runtime "
                f"(Debian: openjdk-17-jre-headless), or give --job_endpoint of a job server that runs."
            )


def runner_of(options: PipelineOptions) -> str:
    """By its full name: to Beam `flink` and `FLINKRUNNER` are FlinkRunner."""
    given = str(options.get_all_options()["runner"]).rpartition(".")[2]
    short = given.lower().removesuffix("runner")
    return next((name for name in (*ENGINES, *HERE) if name.lower() == f"{short}runner"), given)


def _way_out(runner: str) -> str:
    name, option = runner.removesuffix("Runner").lower(), STARTED[runner]
    return (
        f"`make engine-{name}` builds and starts one: then give @{name}.args. Or give --{option} of a file, or "
        f"--job_endpoint of one that runs: docs/engines.md."
    )


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What a job is handed to. job: its name there. master: the address of Flink's REST, "" where none is given."""

    runner: str
    job: str
    master: str

    @classmethod
    def of(cls, options: PipelineOptions) -> "Engine":
        """To be asked before the job is handed over: Beam changes the options then."""
        given = options.get_all_options()
        master = given["flink_master"]
        if master[:1] == "[":  # [auto], [local]
            master = ""
        elif "://" not in master:
            master = f"http://{master}"
        return cls(runner=runner_of(options), job=given["job_name"] or "", master=master)

    def not_fetched(self, error: Exception) -> InputError:
        """For what Beam raises where it can neither find nor fetch what the runner starts here."""
        found = str(error).partition(". ")[0]
        return InputError(f"--runner={self.runner}: {found}. {_way_out(self.runner)}")

    def cancel(self, result: Any) -> None:
        """Ends the job, or says that it may go on.

        Beam's word that a job is cancelled is not enough: Flink's job server gives it while the job runs on. Flink
        itself is asked, where --flink_master names it.

        Args:
          result: Beam's; None while the job is handed over.
        """
        ended = False
        try:
            if self.master:
                ended = self._cancel_on_flink()
            elif result is not None:
                result.cancel()
                may_be_flink = self.runner in ("PortableRunner", "FlinkRunner")
                ended = not may_be_flink and _soon(lambda: PipelineState.is_terminal(result.state))
        finally:  # whatever a job server raises
            if not ended:
                log.warning("the job %s may still run on the engine: look there, and cancel it", self.job)

    def _cancel_on_flink(self) -> bool:
        """By https://nightlies.apache.org/flink/flink-docs-stable/docs/ops/rest_api/. Returns whether it has ended."""
        asked = set[str]()

        def ended() -> bool:
            with urllib.request.urlopen(f"{self.master}/jobs/overview", timeout=ASK_SECONDS) as answer:
                jobs = [job for job in json.load(answer)["jobs"] if job["name"] == self.job]
            running = {job["jid"] for job in jobs if job["state"] not in ENDED}
            for job in running - asked:
                request = urllib.request.Request(f"{self.master}/jobs/{job}?mode=cancel", method="PATCH")
                urllib.request.urlopen(request, timeout=ASK_SECONDS).close()
            asked.update(running)
            return bool(asked) and not running  # a job that is handed over just now may not be there yet

        return _soon(ended)


def _soon(ended: Callable[[], bool]) -> bool:
    """Whether it was so before CANCEL_SECONDS were over."""
    deadline = time.monotonic() + CANCEL_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # it did not answer in time
            if ended():
                return True
        time.sleep(LOOK_SECONDS)
    return False
