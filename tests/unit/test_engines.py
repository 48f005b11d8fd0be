"""Starting and stopping an engine's processes; tests/on_engines.py runs jobs on them."""

import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from engines.local import Engine, Refused

WAITS = "import time; time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WAITS!r}])"


@pytest.fixture
def engine(tmp_path):
    engine = Engine(tmp_path)
    yield engine
    engine.stop()


@pytest.mark.parametrize("kind", ["flink", "spark"])
def test_a_missing_java_is_one_line(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match=r"^no java. Install a Java 17 runtime \(Debian: openjdk-17-jre-headless\).$"):
        Engine(tmp_path / "engine").start(kind)


def test_what_died_is_named_with_its_complaint(engine):
    engine.spawn("jobserver", [sys.executable, "-c", "raise SystemExit('ERROR the port is taken')"])
    with pytest.raises(Refused, match=r"^the job server did not start, jobserver died. .*\nERROR the port is taken$"):
        engine.wait("the job server", lambda: False)


def test_stopping_takes_along_what_a_process_started(engine):
    engine.spawn("pool", [sys.executable, "-c", PARENT])
    engine.wait("the child", lambda: len(engine.workers()) == 1)
    processes = engine.members()
    assert engine.stop() == ["pool"]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            assert process.status() == psutil.STATUS_ZOMBIE


def test_a_child_that_outlives_its_killed_parent_is_stopped_too(engine):
    engine.spawn("pool", [sys.executable, "-c", PARENT])
    engine.wait("the child", lambda: len(engine.workers()) == 1)
    [child] = engine.workers()
    psutil.Process(engine.pid("pool")).kill()
    engine.stop()
    assert not child.is_running()


def test_another_process_that_has_the_id_by_now_is_left_alone(engine):
    other = subprocess.Popen([sys.executable, "-c", WAITS], start_new_session=True)
    try:
        (engine.state / "pool.pid").write_text(f"{other.pid} 1.5")
        assert engine.stop() == [] and other.poll() is None
    finally:
        other.kill()
        other.wait()
