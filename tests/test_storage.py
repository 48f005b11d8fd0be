"""Run directories that are on no disk: fsspec's memory, and an object store that other processes see too."""

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec.implementations.memory
import numpy as np
import pytest
from conftest import command as run_command

from pipeline import command, ingest, mine, records, storage
from pipeline.records import InputError
from trainer import evaluate, train

STORE = Path(__file__).parent / "fake_store"


def digests(run):
    """What a mined and trained round is told by: its triplets, and the next checkpoint."""
    manifest = json.loads(records.manifest_path(run, 0).read_text())
    metrics = json.loads((records.round_dir(run, 0) / "train/metrics.json").read_text())
    return manifest["triplet_digest"], metrics["next_checkpoint_digest"]


@pytest.fixture(scope="module")
def expected(mined, tmp_path_factory):
    run = shutil.copytree(mined, tmp_path_factory.mktemp("trained") / "run")
    assert train.main(["--run_dir", str(run)]) == 0
    return digests(run)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The fake store, for this process's children."""
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("FAKE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PYTHONPATH", f"{STORE}:{Path.cwd()}:{os.environ.get('PYTHONPATH', '')}")
    return tmp_path / "store"


def read(store, name):
    return json.loads((store / f"bucket%2Frun%2F{name.replace('/', '%2F')}").read_text())


RUN = "fake://bucket/run"


def test_the_loop_in_memory_gives_what_it_gives_on_a_disk(digits, expected):
    run = f"memory://test-{os.getpid()}/run"
    assert ingest.main(["--run_dir", run, "--source", "digits"]) == 0
    place = storage.location(run)
    first = records.checkpoint_path(digits, 0)  # a network made in this process has its layers numbered on
    storage.write_atomically(records.checkpoint_path(place, 0), functools.partial(shutil.copyfile, first))
    assert mine.main(["--run_dir", run]) == 0
    assert train.main(["--run_dir", run]) == 0
    assert digests(place) == expected
    assert evaluate.main(["--run_dir", run, "--round", "0", "1"]) == 0
    assert mine.main(["--run_dir", run]) == 0  # mined already
    assert records.main(["verify", run]) == 0
    shard = json.loads(records.manifest_path(place, 0).read_text())["shards"][0]["file"]
    assert records.main(["inspect", str(place / "rounds/0000/triplets" / shard)]) == 0
    assert list((place / "rounds/0000/train/logs").iterdir())
    assert not storage.names(place / "rounds/0000/work") and not storage.names(place / "corpus.new")
    assert not storage.names(place / ".lock") and ".lock" not in storage.names(place)


def test_one_bit_in_memory_is_refused(expected):
    run = f"memory://bit-{os.getpid()}/run"
    assert ingest.main(["--run_dir", run, "--source", "digits"]) == 0
    place = storage.location(run)
    shard = place / "corpus" / records.open_corpus(place).split("train").shards[0]["file"]
    data = bytearray(shard.read_bytes())
    data[-20] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(InputError, match="memory://.*is not what"):
        train.main(["--run_dir", run, "--init"])
    data[-20] ^= 1
    shard.write_bytes(bytes(data))
    assert train.main(["--run_dir", run, "--init"]) == 0
    data[-20] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(InputError, match="memory://.*is not what"):
        mine.main(["--run_dir", run])


@pytest.mark.slow
def test_rounds_on_an_object_store_in_processes_of_their_own(store, digits, tmp_path):
    calls = [("pipeline.ingest", "--source", "digits"), ("pipeline.rounds", "--rounds", "1", "--warmup_steps", "0")]
    for module, *arguments in calls:
        done = run_command(module, "--run_dir", RUN, *arguments)
        assert done.returncode == 0, done.stderr
    local = shutil.copytree(digits, tmp_path / "local")
    assert run_command("pipeline.rounds", "--run_dir", local, "--rounds", "1").returncode == 0
    found = read(store, "rounds/0000/triplets/triplets.json")["triplet_digest"]
    assert found == json.loads(records.manifest_path(local, 0).read_text())["triplet_digest"]
    assert read(store, "best/best.json") == json.loads((local / "best/best.json").read_text())


@pytest.mark.slow
def test_two_workers_on_an_object_store(store, expected):
    workers = ["--runner=FnApiRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    for module, *arguments in (
        ("pipeline.ingest", "--source", "digits", *workers), ("pipeline.mine", *workers), ("trainer.train",),
    ):  # fmt: skip
        done = run_command(module, "--run_dir", RUN, *arguments)
        assert done.returncode == 0, done.stderr
    assert read(store, "rounds/0000/triplets/triplets.json")["triplet_digest"] == expected[0]
    assert read(store, "rounds/0000/train/metrics.json")["next_checkpoint_digest"] == expected[1]


@pytest.mark.slow
def test_an_object_cut_off_at_any_put_changes_nothing(store, expected):
    """Every object that a command puts is once left half written, by a process that dies of it."""
    torn = 0
    for module, *arguments in (("pipeline.ingest", "--source", "digits"), ("pipeline.mine",)):
        call = [sys.executable, "-m", module, "--run_dir", RUN, *arguments]
        if module == "pipeline.mine":
            assert run_command("trainer.train", "--run_dir", RUN, "--init").returncode == 0
        before = shutil.copytree(store, store.parent / f"before-{module}")
        for number in range(1, 99):
            shutil.rmtree(store)
            shutil.copytree(before, store)
            killed = subprocess.run(call, env=os.environ | {"FAKE_TEAR": str(number)}, capture_output=True)
            if killed.returncode == 0:
                break
            assert killed.returncode == -9
            torn += 1
            done = run_command(*call[2:])
            assert done.returncode == 0, (module, number, done.stderr)
            if module == "pipeline.mine":
                assert read(store, "rounds/0000/triplets/triplets.json")["triplet_digest"] == expected[0]
    assert torn >= 15
    done = run_command("pipeline.records", "verify", RUN)
    assert done.returncode == 0, done.stdout


def test_a_lock_on_a_store(tmp_path, monkeypatch):
    run = storage.location(f"memory://lock-{os.getpid()}/run")
    with command.hold(run, "mine"):
        with pytest.raises(command.Locked, match=r"is held by mine, process \d+ on "), command.hold(run, "train"):
            pass
        held = json.loads((run / ".lock").read_text())
    assert not (run / ".lock").exists()
    other = {**held, "host": "another", "renewed": time.time() - command.LEASE - 1}
    for dead in (other, {**held, "process": 2**22 + 1, "renewed": time.time()}):
        (run / ".lock").write_text(json.dumps(dead))
        with command.hold(run, "train"):
            pass
    (run / ".lock").write_text(json.dumps({**other, "renewed": time.time()}))
    with pytest.raises(command.Locked, match="is held by mine"), command.hold(run, "train"):
        pass


def test_a_lease_is_renewed(monkeypatch):
    monkeypatch.setattr(command, "LEASE", 0.2)
    run = storage.location(f"memory://lease-{os.getpid()}/run")
    with command.hold(run, "mine"):
        first = json.loads((run / ".lock").read_text())["renewed"]
        deadline = time.monotonic() + 20
        while json.loads((run / ".lock").read_text() or "{}").get("renewed", first) == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("text", ["nothing://bucket/run", "hdfs2://x"])
def test_a_protocol_that_nobody_knows_is_refused(text):
    with pytest.raises(InputError, match=f"{text}.*extras gs, s3 and hdfs"):
        ingest.main(["--run_dir", text, "--source", "digits"])


def test_a_copy_is_of_the_newest_version():
    path = storage.location(f"memory://copy-{os.getpid()}/a.npy")
    for value in (1, 2):
        storage.write_atomically(path, lambda temporary, v=value: np.save(temporary, np.full(3, v)))
        assert records.open_array(path).tolist() == [value] * 3


def test_threads_that_open_one_remote_array_share_a_copy(monkeypatch):
    """Each made a copy of its own, and all but one were removed before they were read."""
    path = storage.location(f"memory://threads-{os.getpid()}/a.npy")
    storage.write_atomically(path, lambda temporary: np.save(temporary, np.arange(10)))
    real = fsspec.implementations.memory.MemoryFileSystem.get_file

    def slow(*arguments, **options):
        time.sleep(0.05)
        return real(*arguments, **options)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "get_file", slow)
    with ThreadPoolExecutor(3) as pool:
        assert [int(array.sum()) for array in pool.map(records.open_array, [path] * 3)] == [45] * 3
