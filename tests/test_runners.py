"""The same triplets whatever runs the job."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import command

from pipeline import ingest, job, mine, records
from trainer import train

pytestmark = pytest.mark.slow

FLAGS = {
    "random": ["--pick", "random"],
    "nearest": ["--pick", "nearest"],
    "spread": ["--packs", "spread", "--pack_rows", "32", "--fill", "2", "--margin", "1.0"],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """10,000 vectors: three corpus shards, three column blocks, five work items, three triplet shards."""
    directory = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 100)
    vectors = rng.standard_normal((100, 16))[labels] + rng.standard_normal((10_000, 16))
    np.savez(directory / "v.npz", vectors=vectors, labels=labels)
    run = directory / "run"
    shares = ["--validation_share", "0", "--eval_share", "0"]
    assert ingest.main(["--run_dir", str(run), "--source", f"arrays:{directory / 'v.npz'}", *shares]) == 0
    assert train.main(["--run_dir", str(run), "--online", "--steps", "30"]) == 0
    return run


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    """The digest of the in-process runner's triplets, by the name of the flags."""
    digests = {}
    for name, flags in FLAGS.items():
        run = shutil.copytree(corpus, tmp_path_factory.mktemp("inprocess") / "run")
        assert mine.main(["--run_dir", str(run), *flags]) == 0
        manifest = json.loads(records.manifest_path(run, 0).read_text())
        assert len(manifest["shards"]) == 3
        digests[name] = manifest["triplet_digest"]
    return digests


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A directory with our packages from a wheel that setup.py makes, as a worker's image would have them."""
    root, directory = Path(__file__).parents[1], tmp_path_factory.mktemp("wheel")
    for name in ("pipeline", "trainer"):
        shutil.copytree(root / name, directory / "source" / name)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(root / name, directory / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["--no-deps", "--no-build-isolation", "--wheel-dir", directory, directory / "source"]
    subprocess.run([*pip, "wheel", *build], check=True)
    installed = directory / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, *directory.glob("*.whl")], check=True)
    return installed


@pytest.fixture(scope="module")
def job_service(tmp_path_factory):
    """Beam's local job service on a port of its own, in a directory without our sources."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    module = "apache_beam.runners.portability.local_job_service_main"
    service = subprocess.Popen(
        [sys.executable, "-m", module, "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path_factory.mktemp("service"),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)) == 0:
                break
        assert service.poll() is None and time.monotonic() < deadline, "the job service did not start"
        time.sleep(0.1)
    yield port
    service.terminate()
    service.wait()


def digest(run, *arguments):
    done = command("pipeline.mine", "--run_dir", run, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(records.manifest_path(run, 0).read_text())["triplet_digest"]


@pytest.mark.parametrize("name", FLAGS)
def test_two_worker_processes(corpus, expected, tmp_path, name):
    run = shutil.copytree(corpus, tmp_path / "run")
    two = ["--direct_num_workers", "2", "--direct_running_mode", "multi_processing"]
    assert digest(run, *FLAGS[name], "--runner=FnApiRunner", *two) == expected[name]


@pytest.mark.parametrize("name", ["random", "spread"])
def test_portable_runner_with_workers_from_the_wheel(corpus, expected, tmp_path, job_service, wheel, name):
    """Workers in processes of their own; the runner starts them through a shell, where the job service is."""
    run = shutil.copytree(corpus, tmp_path / "run")
    where = f"PYTHONPATH={wheel} {sys.executable} -c 'import pipeline.mine as m; print(m.__file__)'"
    imported = subprocess.run(where, shell=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert imported.strip() == str(wheel / "pipeline" / "mine.py")
    portable = [
        "--runner=PortableRunner",
        f"--job_endpoint=localhost:{job_service}",
        "--environment_type=beam:env:harness_subprocess_python:v1",
        f"--environment_config=PYTHONPATH={wheel} {sys.executable} -m apache_beam.runners.worker.sdk_worker_main",
    ]
    assert digest(run, *FLAGS[name], *portable) == expected[name]


@pytest.mark.parametrize(("anchor_blocks", "columns"), [(1, 1), (8, 1), (3, 8)])
def test_work_items_of_any_size(corpus, expected, tmp_path, monkeypatch, anchor_blocks, columns):
    """`nearest` with its column blocks one, or eight, an item: merged to the same triplets."""
    monkeypatch.setattr(mine, "ITEM_BLOCKS", anchor_blocks)
    monkeypatch.setattr(mine, "ITEM_COLUMNS", columns)
    run = shutil.copytree(corpus, tmp_path / "run")
    assert mine.main(["--run_dir", str(run), "--pick", "nearest"]) == 0
    assert json.loads(records.manifest_path(run, 0).read_text())["triplet_digest"] == expected["nearest"]


@pytest.mark.parametrize(
    ("name", "after"),
    [("random", "embeddings"), ("random", "work"), ("random", "triplets"), ("spread", "groups"), ("spread", "dealt")],
)
def test_a_killed_run_continues_to_the_same_triplets(corpus, expected, tmp_path, name, after):
    """kill -9 as soon as a stage has left its first file."""
    run = shutil.copytree(corpus, tmp_path / "run")
    call = [sys.executable, "-m", "pipeline.mine", "--run_dir", str(run), *FLAGS[name]]
    killed = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    patterns = {"embeddings": "embeddings/*/*.npy", "work": "work/*/found/*.npz", "triplets": "triplets/*.tfrecord"}
    patterns |= {"groups": "work/*/groups/*.npz", "dealt": "work/*/pack-rows.npy"}
    while killed.poll() is None and not list((run / "rounds/0000").glob(patterns[after])):
        os.sched_yield()
    killed.kill()
    killed.wait()
    assert not records.manifest_path(run, 0).exists() or after in ("triplets", "dealt")
    assert digest(run, *FLAGS[name]) == expected[name]
    assert not list(run.rglob(".*tmp*")) and not (run / "rounds/0000/work").exists()


def test_bundles_do_not_wait_for_beams_sampling_thread():
    from apache_beam.runners.worker.statesampler import StateSampler

    assert StateSampler("stage", None).sampling_period_ms == job.SAMPLING_MS
