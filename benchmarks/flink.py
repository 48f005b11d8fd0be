"""A Flink cluster on this machine, with Beam's job server, to run the mining job on.

    make flink-up                     one JobManager, two TaskManagers, the job server; writes flink.args
    make mine ARGS=@flink.args
    make flink-down

Flink listens on 127.0.0.1 only; Beam's job server and worker ports are open on all interfaces. Process ids and logs
are in runs/flink. Each TaskManager starts a Python worker (`triplet-miner-worker`). A job whose TaskManager dies is
restarted on the other one, which has a slot to spare.
"""

import argparse
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
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

STATE = Path("runs/flink").absolute()
ARGS = Path("flink.args").absolute()
HOST = "127.0.0.1"
TASK_MANAGERS = ("taskmanager-1", "taskmanager-2")
SLOTS = 2  # per TaskManager: a job of parallelism 2 survives the loss of one
START_SECONDS = 120.0
STOP_SECONDS = 20.0
COMPLAINT = re.compile(r"ERROR|Caused by|Error:|Exception: ")
# What Flink reaches into by reflection on Java 17: the page "Java compatibility" of its documentation.
OPENED = "lang lang.invoke net io nio text time util util.concurrent util.concurrent.atomic".split()
HEAP = {"jobmanager": 512, "taskmanager": 640, "jobserver": 512}  # MB
MEMORY = {  # of a TaskManager, what Flink's own start script would work out
    "taskmanager.cpu.cores": SLOTS,
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.task.heap.size": "512m",
    "taskmanager.memory.task.off-heap.size": "0m",
    "taskmanager.memory.network.min": "128m",
    "taskmanager.memory.network.max": "128m",
    "taskmanager.memory.managed.size": "256m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "192m",
    "taskmanager.memory.jvm-overhead.max": "192m",
}


class Refused(Exception):
    """The cluster cannot start here. The message says what is missing."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def job_server_jar(given: str) -> Path:
    """The jar that was given, or that of the installed Beam's version from Maven Central."""
    if given:
        if not Path(given).is_file():
            raise Refused(f"FLINK_JOB_SERVER_JAR={given}: no such file")
        return Path(given)
    artifact = f"beam-runners-flink-2.2-job-server:{version('apache-beam')}"
    jar = STATE.parent / "flink-jars" / (artifact.replace(":", "-") + ".jar")
    if jar.exists():
        return jar
    otherwise = "or set FLINK_JOB_SERVER_JAR to a job server jar (and FLINK_VERSION to the Flink that it is made for)"
    if not shutil.which("mvn"):
        raise Refused(f"no mvn to fetch org.apache.beam:{artifact} with. Install Maven (Debian: maven), {otherwise}.")
    print(f"fetching org.apache.beam:{artifact}", flush=True)
    goal = ["dependency:copy", f"-Dartifact=org.apache.beam:{artifact}", f"-DoutputDirectory={jar.parent}"]
    done = subprocess.run(["mvn", "-B", "-q", *goal], capture_output=True, text=True)
    if done.returncode or not jar.exists():
        why = next((line for line in done.stdout.splitlines() if "ERROR" in line), done.stderr)
        raise Refused(f"Maven has no org.apache.beam:{artifact}: {why}\nMend Maven's set-up, {otherwise}.")
    return jar


class Cluster:
    """The cluster's processes, by the files in STATE: also those that another command started.

    libraries: the directory of Flink's jars. jar: Beam's job server for that version of Flink.
    """

    def __init__(self, libraries: Path = Path(), jar: Path = Path()):
        self.libraries, self.jar = libraries, jar
        self.java = shutil.which("java", path=f"{os.environ.get('JAVA_HOME', '')}/bin:{os.environ['PATH']}")

    def start(self) -> None:
        """Starts all, waits until it answers, and writes flink.args."""
        if not self.java:
            raise Refused("no java. Install a Java 17 runtime (Debian: openjdk-17-jre-headless), or set JAVA_HOME.")
        if not list(self.libraries.glob("flink-dist-*.jar")):
            raise Refused(f"{self.libraries} holds no flink-dist jar; give --libraries the lib directory of a Flink.")
        if left := [name for name in self.names() if alive(self.pid(name))]:
            raise Refused(f"{', '.join(left)} still run; `make flink-down` stops them.")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        shutil.rmtree(STATE, ignore_errors=True)
        (STATE / "conf").mkdir(parents=True)
        rest, rpc, jobs = free_port(), free_port(), free_port()
        configuration = {
            "jobmanager.rpc.address": HOST, "jobmanager.bind-host": HOST, "jobmanager.rpc.port": rpc,
            "rest.address": HOST, "rest.bind-address": HOST, "rest.port": rest,
            "taskmanager.bind-host": HOST, "taskmanager.host": HOST, "taskmanager.numberOfTaskSlots": SLOTS,
            "taskmanager.load-balance.mode": "SLOTS",
            "io.tmp.dirs": STATE / "tmp",
            "jobmanager.memory.process.size": "1g",
            "heartbeat.interval": 2000, "heartbeat.timeout": 15000,
            # A batch job of Beam takes the cluster's strategy. Without one it would fail with its TaskManager; with a
            # short delay it would use up its attempts on the dead one's slots, which are offered until that is noticed.
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 3, "restart-strategy.fixed-delay.delay": "10 s",
            **MEMORY,
        }  # fmt: skip
        lines = [f"{name}: {value}\n" for name, value in configuration.items()]
        (STATE / "conf" / "config.yaml").write_text("".join(lines))
        (STATE / "rest").write_text(f"http://{HOST}:{rest}")
        self._flink("jobmanager", "entrypoint.StandaloneSessionClusterEntrypoint")
        served = ["--job-host", HOST, "--job-port", str(jobs), "--artifact-port", "0", "--expansion-port", "-1"]
        self._java("jobserver", "-jar", str(self.jar), *served, "--artifacts-dir", str(STATE / "artifacts"),
                   "--flink-master", f"{HOST}:{rest}")  # fmt: skip
        self.start_task_managers()
        self.wait("the job server", lambda: accepts(jobs))
        worker = Path(sys.executable).with_name("triplet-miner-worker")
        lines = [
            "--runner=PortableRunner",
            f"--job_endpoint={HOST}:{jobs}",
            "--environment_type=PROCESS",
            f"--environment_config={json.dumps({'command': str(worker)})}",
            f"--parallelism={len(TASK_MANAGERS)}",
        ]
        ARGS.write_text("\n".join(lines) + "\n")

    def start_task_managers(self) -> None:
        """Starts those that do not run."""
        for name in TASK_MANAGERS:
            if name not in self.names() or not alive(self.pid(name)):
                own = f"-Dtaskmanager.resource-id={name}"
                self._flink(name, "taskexecutor.TaskManagerRunner", own)
        self.wait("the TaskManagers", lambda: self.task_managers() == set(TASK_MANAGERS))

    def _flink(self, name: str, entry: str, *arguments: str) -> None:
        conf = ["--configDir", str(STATE / "conf")]
        self._java(name, "-cp", f"{self.libraries}/*", f"org.apache.flink.runtime.{entry}", *conf, *arguments)

    def _java(self, name: str, *arguments: str) -> None:
        flags = [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in OPENED]
        heap = HEAP[name.partition("-")[0]]
        flags += [f"-Xmx{heap}m", "-XX:+UseSerialGC", "-Dorg.apache.logging.log4j.level=INFO"]
        with open(STATE / f"{name}.log", "a") as log:
            process = subprocess.Popen(
                [str(self.java), *flags, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        (STATE / f"{name}.pid").write_text(str(process.pid))

    def task_managers(self) -> set[str]:
        """Those that the JobManager knows."""
        return {manager["id"] for manager in self.ask("/taskmanagers")["taskmanagers"]}

    def wait(self, what: str, ready: Callable[[], bool]) -> None:
        """Polls until it is so. Raises Refused when a process has died or START_SECONDS are over."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError):
                if ready():
                    return
            dead = [name for name in self.names() if not alive(self.pid(name))]
            if dead or time.monotonic() > deadline:
                name = dead[0] if dead else "jobmanager"
                log = STATE / f"{name}.log"
                told = [line for line in log.read_text(errors="replace").splitlines() if COMPLAINT.search(line)]
                why = "\n".join(told[-5:])
                raise Refused(f"{what} did not start: {name} {'died' if dead else 'does not answer'}. {log}:\n{why}")
            time.sleep(0.1)

    def ask(self, path: str) -> Any:
        """The JobManager's answer to GET."""
        with urllib.request.urlopen((STATE / "rest").read_text() + path, timeout=10) as answer:
            return json.load(answer)

    def names(self) -> list[str]:
        return sorted(path.stem for path in STATE.glob("*.pid"))

    def pid(self, name: str) -> int:
        return int((STATE / f"{name}.pid").read_text())

    def stop(self) -> list[str]:
        """Stops what runs, by its ids, and waits until it is gone. Returns the names of what ran."""
        pids = {name: self.pid(name) for name in self.names()}
        running = {name: pid for name, pid in pids.items() if alive(pid)}
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in filter(alive, running.values()):
                os.kill(pid, number)
            deadline = time.monotonic() + STOP_SECONDS
            while any(map(alive, running.values())) and time.monotonic() < deadline:
                time.sleep(0.05)
        for name in pids:
            (STATE / f"{name}.pid").unlink()
        ARGS.unlink(missing_ok=True)
        return list(running)


def alive(pid: int) -> bool:
    """Whether that process is one of ours: an id may be another's by now."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # if it is our child and dead, it is gone now
    found = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True).stdout
    return str(STATE) in found


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flink", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("up", "down"))
    parser.add_argument("--libraries", type=Path, help="Flink's lib directory")
    parser.add_argument("--jar", default="", help="Beam's job server for that Flink (from Maven Central)")
    arguments = parser.parse_args()
    if arguments.what == "down":
        print(f"stopped {', '.join(Cluster().stop()) or 'nothing: nothing ran'}")
        return 0
    try:
        cluster = Cluster(arguments.libraries, job_server_jar(arguments.jar))
        cluster.start()
    except Refused as error:
        print(error, file=sys.stderr)
        return 1
    version = cluster.ask("/config")["flink-version"]
    print(f"Flink {version} at {(STATE / 'rest').read_text()}, {len(TASK_MANAGERS)} TaskManagers of {SLOTS} slots")
    print(f"its options are in {ARGS.name}: make mine ARGS=@{ARGS.name}; make flink-down")
    return 0


if __name__ == "__main__":
    sys.exit(main())
