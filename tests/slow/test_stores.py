"""An object store that other processes see too: rounds, workers, and objects that are cut off."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import command, copied

from pipeline import ingest, rounds
from pipeline.corpus.corpus import Corpus
from pipeline.files.layout import Run
from pipeline.mining.manifest import open_triplets
from trainer import train

pytestmark = pytest.mark.slow

STORE = Path(__file__).parent / "fake_store"
RUN = "fake://bucket/run"
WORKERS = ["--runner=FnApiRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The fake store, for this process's children."""
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("FAKE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PYTHONPATH", f"{STORE}:{Path.cwd()}:{os.environ.get('PYTHONPATH', '')}")
    return tmp_path / "store"


@pytest.fixture(scope="module")
def expected(mined, tmp_path_factory):
    """The digest of the triplets, and of the next checkpoint."""
    run_dir = copied(mined, tmp_path_factory.mktemp("trained"))
    assert train.main(["--run_dir", str(run_dir)]) == 0
    metrics = json.loads(Run(run_dir).round(0).metrics.read_text())
    triplets = open_triplets(Run(run_dir).round(0), Corpus.open(run_dir)).triplet_digest
    return triplets, metrics["next_checkpoint_digest"]


def ran(module, *arguments):
    done = command(module, "--run_dir", RUN, *arguments)
    assert done.returncode == 0, done.stderr


def read(store, name):
    return json.loads((store / f"bucket%2Frun%2F{name.replace('/', '%2F')}").read_text())


def test_rounds_are_those_of_a_disk(store, tmp_path):
    local = tmp_path / "local"
    for module, *arguments in (
        (ingest, "--source", "digits"), (rounds, "--rounds", "1", "--recipe", "plain")
    ):  # fmt: skip
        ran(module.__name__, *arguments)
        assert module.main(["--run_dir", str(local), *arguments]) == 0
    found = read(store, "rounds/0000/triplets/triplets.json")["triplet_digest"]
    assert found == json.loads(Run(local).round(0).manifest.read_text())["triplet_digest"]
    assert read(store, "best/best.json") == json.loads(Run(local).best.read_text())


def test_two_workers(store, expected):
    ran("pipeline.ingest", "--source", "digits", *WORKERS)
    ran("trainer.init")
    ran("pipeline.mine", *WORKERS)
    ran("trainer.train")
    assert read(store, "rounds/0000/triplets/triplets.json")["triplet_digest"] == expected[0]
    assert read(store, "rounds/0000/train/metrics.json")["next_checkpoint_digest"] == expected[1]


@pytest.mark.skipif("FAULTS" not in os.environ, reason="many minutes: part of `make test-faults`")
def test_an_object_cut_off_at_any_put_changes_nothing(store, expected):
    """Every object that a command puts is once left half written, by a process that dies of it.

    No real store does so. What is then half there is made again; of a manifest one is told to remove its directory.
    """
    torn = refused = 0
    for module, *arguments in (("pipeline.ingest", "--source", "digits"), ("pipeline.mine",)):
        if module == "pipeline.mine":
            ran("trainer.init")
        call = [sys.executable, "-m", module, "--run_dir", RUN, *arguments]
        before = shutil.copytree(store, store.parent / f"before-{module}")
        for number in range(1, 99):
            shutil.rmtree(store)
            shutil.copytree(before, store)
            killed = subprocess.run(call, env=os.environ | {"FAKE_TEAR": str(number)}, capture_output=True)
            if killed.returncode == 0:
                break
            assert killed.returncode == -9, killed.stderr
            torn += 1
            again = command(*call[2:])
            said = r"fake://(\S+)/\w+.json is not a manifest: .* Restore it, or else make"
            if torn_manifest := re.search(said, again.stderr):
                refused += 1
                for path in store.glob(f"{quote(torn_manifest[1], safe='')}%2F*"):
                    path.unlink()
                again = command(*call[2:])
            assert again.returncode == 0, (module, number, again.stderr)
            if module == "pipeline.mine":
                assert read(store, "rounds/0000/triplets/triplets.json")["triplet_digest"] == expected[0]
    assert torn >= 15 and refused == 2
    done = command("pipeline.records", "verify", RUN)
    assert done.returncode == 0, done.stdout
