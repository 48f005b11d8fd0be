"""Flink, Spark or Prism on this machine, with two workers, on loopback.

    make engine-flink            builds what it needs, starts it and writes flink.args
    make mine ARGS=@flink.args
    make engines-down            stops all that runs

Python runs in Beam's own worker pool, which an engine asks for a worker: one process a worker and job.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

BUILT = Path(__file__).parents[1] / ".engines"  # what `make` has fetched and built
HOST = "127.0.0.1"
WORKERS = 2
START_SECONDS = 120.0
STOP_SECONDS = 15.0
CACHE = "--environment_cache_millis=60000"  # else Java runners start Python anew at each stage
LOGGED = "-Dorg.apache.logging.log4j.level=INFO"
COMPLAINT = re.compile(r"ERROR|Caused by|Error:|Exception: ")
# What Flink and Spark reach into by reflection on Java 17.
OPENED = (
    "base/java.io base/java.lang base/java.lang.invoke base/java.lang.reflect base/java.net base/java.nio "
    "base/java.text base/java.time base/java.util base/java.util.concurrent base/java.util.concurrent.atomic "
    "base/sun.nio.ch base/sun.security.action base/sun.util.calendar"
).split()
FLINK = {
    "jobmanager.rpc.address": HOST, "jobmanager.bind-host": HOST, "jobmanager.memory.process.size": "1g",
    "rest.address": HOST, "rest.bind-address": HOST, "taskmanager.bind-host": HOST, "taskmanager.host": HOST,
    "taskmanager.numberOfTaskSlots": 2,  # a job of parallelism 2 survives the loss of a TaskManager
    "taskmanager.load-balance.mode": "SLOTS",
    "heartbeat.interval": 2000, "heartbeat.timeout": 15000,
    # A batch job of Beam takes the cluster's strategy. Without one it would fail with its TaskManager; with a
    # short delay it would use up its attempts on the dead one's slots, which are offered until that is noticed.
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.attempts": 3, "restart-strategy.fixed-delay.delay": "10 s",
    # Beam's workers outlive a stage only if its classes are loaded once, from the TaskManager's own class path.
    "classloader.resolve-order": "parent-first",
    # What Flink's start script, which PyPI's package leaves out, would work out.
    "taskmanager.cpu.cores": 2,
    "taskmanager.memory.framework.heap.size": "128m", "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.task.heap.size": "512m", "taskmanager.memory.task.off-heap.size": "0m",
    "taskmanager.memory.network.min": "128m", "taskmanager.memory.network.max": "128m",
    "taskmanager.memory.managed.size": "256m", "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "192m", "taskmanager.memory.jvm-overhead.max": "192m",
}  # fmt: skip


class Refused(Exception):
    """An engine cannot start here. The message says what is missing."""


class Engine:
    """The processes of an engine, by the files in a directory: also those that another command started.

    Each leads a session of its own, in which what it starts stays. NAME.pid holds its id and when it was made: the id
    may be another's by now. The log is in NAME.log.
    """

    def __init__(self, state: Path):
        self.state = state
        self.options: list[str] = []  # of Beam, to use it with
        self.web = ""  # where Flink's JobManager or Spark's master answers
        self.commands: dict[str, tuple[list[str], dict[str, str]]] = {}

    def start(self, kind: str, workers: int = WORKERS) -> None:
        """Starts all of an engine and waits until it answers.

        Raises:
          Refused: if something is missing, an engine of this directory runs, or one of its processes ends.
        """
        if left := self.members():
            raise Refused(f"an engine runs in {self.state}, process {left[0].pid}; `make engines-down` stops it.")
        shutil.rmtree(self.state, ignore_errors=True)
        self.state.mkdir(parents=True)
        try:
            options = STARTS[kind](self, workers)
            self.options = [*options, "--environment_type=EXTERNAL", f"--environment_config={self.pool()}", CACHE]
        except BaseException:
            self.stop()
            raise

    def pool(self) -> str:
        """Starts Beam's worker pool. It runs the `python` of its PATH."""
        address = f"{HOST}:{free_port()}"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        pool = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
        self.spawn("pool", [*pool, f"--service_port={address.partition(':')[2]}"], PATH=path)
        self.wait("the worker pool", lambda: accepts(address))
        return address

    def spawn(self, name: str, command: list[str], **environment: str) -> None:
        self.commands[name] = command, environment
        with open(self.state / f"{name}.log", "a") as log:
            process = psutil.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.state, start_new_session=True,
                env=os.environ | {"TMPDIR": str(self.state)} | environment,
            )  # fmt: skip
        (self.state / f"{name}.pid").write_text(f"{process.pid} {process.create_time()}")

    def java(self, name: str, megabytes: int, class_path: str, *arguments: str, **environment: str) -> None:
        java = shutil.which("java")
        if not java:
            raise Refused("no java. Install a Java 17 runtime (Debian: openjdk-17-jre-headless).")
        flags = [f"--add-opens=java.{package}=ALL-UNNAMED" for package in OPENED]
        flags += [f"-Xmx{megabytes}m", "-XX:+UseSerialGC", f"-Djava.io.tmpdir={self.state}"]
        self.spawn(name, [java, *flags, LOGGED, "-cp", class_path, *arguments], **environment)

    def again(self, name: str) -> None:
        """Starts a process anew that was killed."""
        command, environment = self.commands[name]
        self.spawn(name, command, **environment)

    def wait(self, what: str, ready: Callable[[], bool]) -> None:
        """Polls until it is so. Raises Refused when a process has died or START_SECONDS are over."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if ready():
                    return
            dead = [name for name in self.names() if not self.session(name)]
            if dead:
                log = self.state / f"{dead[0]}.log"
                told = [line for line in log.read_text(errors="replace").splitlines() if COMPLAINT.search(line)]
                raise Refused("\n".join([f"{what} did not start, {dead[0]} died. {log}:", *told[-5:]]))
            if time.monotonic() > deadline:
                raise Refused(f"{what} did not answer in {START_SECONDS:.0f} s. The logs are in {self.state}.")
            time.sleep(0.1)

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.state.glob("*.pid"))

    def pid(self, name: str) -> int:
        return int((self.state / f"{name}.pid").read_text().split()[0])

    def session(self, name: str) -> list[psutil.Process]:
        """A process and what it started, while they live."""
        pid, made = (self.state / f"{name}.pid").read_text().split()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getsid(process.pid) == int(pid) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        another = any(process.pid == int(pid) and process.create_time() != float(made) for process in found)
        return [] if another else found

    def members(self) -> list[psutil.Process]:
        return [process for name in self.names() for process in self.session(name)]

    def workers(self) -> list[psutil.Process]:
        """Python's, that live: what the pool has started."""
        return [process for process in self.session("pool") if process.pid != self.pid("pool")]

    def starts(self) -> int:
        """How often the pool has started Python."""
        return (self.state / "pool.log").read_text(errors="replace").count("Starting worker with command")

    def stop(self) -> list[str]:
        """Stops what runs and waits until it is gone. Returns the names of what ran."""
        ran = [name for name in self.names() if self.session(name)]
        for number in (signal.SIGTERM, signal.SIGKILL):
            processes = self.members()
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            psutil.wait_procs(processes, STOP_SECONDS)
        for name in self.names():
            (self.state / f"{name}.pid").unlink()
        return ran


def flink(engine: Engine, workers: int) -> list[str]:
    """A JobManager, TaskManagers and Beam's job server."""
    rest, jobs = free_port(), free_port()
    engine.web = f"{HOST}:{rest}"
    configuration = FLINK | {"rest.port": rest, "jobmanager.rpc.port": free_port(), "io.tmp.dirs": engine.state / "tmp"}
    (engine.state / "config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in configuration.items()))
    jar, runtime = BUILT / "flink-job-server/job-server.jar", "org.apache.flink.runtime"
    cluster, own = f"{BUILT}/flink/pyflink/lib/*:{jar}", ["--configDir", str(engine.state)]
    engine.java("jobmanager", 512, cluster, f"{runtime}.entrypoint.StandaloneSessionClusterEntrypoint", *own)
    for n in range(workers):
        name = f"worker-{n}"
        named = f"-Dtaskmanager.resource-id={name}"
        engine.java(name, 640, cluster, f"{runtime}.taskexecutor.TaskManagerRunner", *own, named)
    server = ["org.apache.beam.runners.flink.FlinkJobServerDriver", f"--flink-master={engine.web}"]
    engine.java("jobserver", 512, str(jar), *server, *served(engine, jobs))
    engine.wait("the JobManager", lambda: len(get(f"{engine.web}/taskmanagers")["taskmanagers"]) == workers)
    return [*portable(engine, "Portable", jobs), f"--flink_master={engine.web}", f"--parallelism={workers}"]


def spark(engine: Engine, workers: int) -> list[str]:
    """A standalone master, workers of a core each, and Beam's job server, which is the driver of each job."""
    port, web, jobs = free_port(), free_port(), free_port()
    engine.web = f"{HOST}:{web}"
    jar, home = BUILT / "spark-job-server/job-server.jar", BUILT / "spark/pyspark"
    classes = f"{jar}:{home}/jars/*"  # Beam's first: Spark's jars have other versions of what it needs
    environment = {"SPARK_HOME": str(home), "SPARK_SCALA_VERSION": "2.12", "SPARK_LOCAL_IP": HOST}
    master, deploy = f"spark://{HOST}:{port}", "org.apache.spark.deploy"
    own = ["--host", HOST, "--port", str(port), "--webui-port", str(web)]
    engine.java("master", 512, classes, f"{deploy}.master.Master", *own, **environment)
    for n in range(workers):
        own = ["--host", HOST, "--cores", "1", "--memory", "1g", "--webui-port", "0"]
        own += ["--work-dir", str(engine.state / f"work-{n}")]
        engine.java(f"worker-{n}", 256, classes, f"{deploy}.worker.Worker", *own, master, **environment)
    settings = [f"-Dspark.executor.extraClassPath={jar}", "-Dspark.executor.memory=1g", "-Dspark.ui.enabled=false"]
    server = ["org.apache.beam.runners.spark.SparkJobServerDriver", f"--spark-master-url={master}"]
    engine.java("jobserver", 768, classes, *settings, *server, *served(engine, jobs), **environment)
    engine.wait("the master", lambda: get(f"{engine.web}/json/")["aliveworkers"] == workers)
    return portable(engine, "Spark", jobs)


def prism(engine: Engine, workers: int) -> list[str]:
    """Beam's own runner, a single binary, which asks for one worker."""
    jobs = free_port()
    engine.spawn("jobserver", [str(BUILT / "prism"), f"--job_port={jobs}", "--serve_http=false"])
    return portable(engine, "Prism", jobs)


STARTS = {"flink": flink, "spark": spark, "prism": prism}


def served(engine: Engine, port: int) -> list[str]:
    """Options of Beam's Java job servers."""
    ports = [f"--job-host={HOST}", f"--job-port={port}", "--artifact-port=0", "--expansion-port=-1"]
    return [*ports, f"--artifacts-dir={engine.state}/artifacts"]


def portable(engine: Engine, runner: str, port: int) -> list[str]:
    engine.wait("the job server", lambda: accepts(f"{HOST}:{port}"))
    return [f"--runner={runner}Runner", f"--job_endpoint={HOST}:{port}"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def accepts(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def get(address: str) -> Any:
    """The JSON that is there."""
    with urllib.request.urlopen(f"http://{address}", timeout=10) as answer:
        return json.load(answer)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m engines.local", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=(*STARTS, "down"))
    what = parser.parse_args().what
    if what == "down":
        for kind in STARTS:
            ran = Engine(BUILT / "running" / kind).stop()
            Path(f"{kind}.args").unlink(missing_ok=True)
            print(f"{kind}: stopped {', '.join(ran) or 'nothing: nothing ran'}")
        return 0
    engine = Engine(BUILT / "running" / what)
    try:
        engine.start(what)
    except Refused as error:
        print(error, file=sys.stderr)
        return 1
    Path(f"{what}.args").write_text("\n".join(engine.options) + "\n")
    print(f"{what} runs; its options are in {what}.args: make mine ARGS=@{what}.args; make engines-down")
    return 0


if __name__ == "__main__":
    sys.exit(main())
