"""The same triplets whatever runs the job."""

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
from corpora import NO_HOLD_OUT, make

from engines.local import Engine
from pipeline import mine
from pipeline.corpus.corpus import Corpus
from pipeline.files.layout import Run
from pipeline.mining.manifest import open_triplets
from trainer import warmup

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FLAGS = {
    "random": ["--pick", "random"],
    "nearest": ["--pick", "nearest"],
    "spread": ["--packs", "spread", "--pack_rows", "32", "--fill", "2", "--margin", "1.0"],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """10,000 vectors: three corpus shards, three column blocks, five work items, three triplet shards."""
    directory, rng = tmp_path_factory.mktemp("vectors"), np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 100)
    vectors = rng.standard_normal((100, 16))[labels] + rng.standard_normal((10_000, 16))
    np.savez(directory / "v.npz", vectors=vectors, labels=labels)
    run_dir = directory / "run"
    make(run_dir, f"arrays:{directory / 'v.npz'}", **NO_HOLD_OUT)
    assert warmup.main(["--run_dir", str(run_dir), "--steps", "30"]) == 0
    return run_dir


def digest_of(run_dir):
    manifest = open_triplets(Run(run_dir).round(0), Corpus.open(run_dir))
    assert len(manifest.shards) == 3
    return manifest.triplet_digest


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    """The digest of the in-process runner's triplets, by the name of the flags."""
    digests = {}
    for name, flags in FLAGS.items():
        run_dir = shutil.copytree(corpus, tmp_path_factory.mktemp("inprocess") / "run")
        assert mine.main(["--run_dir", str(run_dir), *flags]) == 0
        digests[name] = digest_of(run_dir)
    return digests


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A directory with our packages from a wheel that setup.py makes, as a worker's image would have them."""
    directory = tmp_path_factory.mktemp("wheel")
    for name in ("pipeline", "trainer"):
        shutil.copytree(ROOT / name, directory / "source" / name)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, directory / "source")
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


@pytest.fixture(scope="module")
def prism(tmp_path_factory):
    """Prism, Beam's own portable runner, from Beam's sources; it is built once a checkout."""
    if not shutil.which("go"):
        pytest.skip("no Go to build Prism with")
    built = subprocess.run(["make", ".engines/prism"], cwd=ROOT, capture_output=True, text=True)
    if built.returncode:  # its sources come from the network
        pytest.skip(f"Prism cannot be built here: {built.stderr.strip()[-200:]}")
    engine = Engine(tmp_path_factory.mktemp("prism"))
    engine.start("prism")
    yield engine
    engine.stop()


def mined_as(corpus, tmp_path, *arguments):
    run_dir = shutil.copytree(corpus, tmp_path / "run")
    done = command("pipeline.mine", "--run_dir", run_dir, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return digest_of(run_dir)


@pytest.mark.parametrize("name", FLAGS)
def test_two_worker_processes(corpus, expected, tmp_path, name):
    two = ["--direct_num_workers", "2", "--direct_running_mode", "multi_processing"]
    assert mined_as(corpus, tmp_path, *FLAGS[name], "--runner=FnApiRunner", *two) == expected[name]


@pytest.mark.parametrize("name", ["random", "spread"])
def test_portable_runner_with_workers_from_the_wheel(corpus, expected, tmp_path, job_service, wheel, name):
    """Workers in processes of their own; the runner starts them through a shell, where the job service is."""
    where = f"PYTHONPATH={wheel} {sys.executable} -c 'import pipeline.mine as m; print(m.__file__)'"
    imported = subprocess.run(where, shell=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert imported.strip() == str(wheel / "pipeline" / "mine.py")
    portable = [
        "--runner=PortableRunner",
        f"--job_endpoint=localhost:{job_service}",
        "--environment_type=beam:env:harness_subprocess_python:v1",
        f"--environment_config=PYTHONPATH={wheel} {sys.executable} -m apache_beam.runners.worker.sdk_worker_main",
    ]
    assert mined_as(corpus, tmp_path, *FLAGS[name], *portable) == expected[name]


@pytest.mark.parametrize("name", FLAGS)
def test_prism(corpus, expected, tmp_path, prism, name):
    before = prism.starts()
    assert mined_as(corpus, tmp_path, *FLAGS[name], *prism.options) == expected[name]
    assert prism.starts() == before + 1, "Python was started more than once"


def test_prism_ingests_the_same_corpus(corpus, tmp_path, prism):
    source = ["--source", f"arrays:{corpus.parent / 'v.npz'}"]
    for run, options in (("here", []), ("there", prism.options)):
        done = command("pipeline.ingest", "--run_dir", tmp_path / run, *source, *options)
        assert done.returncode == 0, done.stderr[-3000:]
    assert Corpus.open(tmp_path / "there").fingerprint == Corpus.open(tmp_path / "here").fingerprint


def test_prisms_worker_is_killed_and_the_same_command_goes_on(corpus, expected, tmp_path, prism):
    run_dir = shutil.copytree(corpus, tmp_path / "run")
    call = [sys.executable, "-m", "pipeline.mine", "--run_dir", str(run_dir), *FLAGS["nearest"], *prism.options]
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(Run(run_dir).round(0).path.glob("embeddings/*/*.npy")):
        assert process.poll() is None, process.stderr.read()
        os.sched_yield()
    [worker] = prism.workers()
    worker.kill()
    process.communicate()
    assert process.returncode == 1 and not Run(run_dir).round(0).manifest.exists()
    assert subprocess.run(call, capture_output=True).returncode == 0
    assert digest_of(run_dir) == expected["nearest"]


def test_what_a_worker_of_prism_refuses_is_the_last_line(corpus, tmp_path, prism):
    run_dir = shutil.copytree(corpus, tmp_path / "run")
    shard = sorted(Run(run_dir).corpus.glob("train-*.tfrecord"))[1]
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    done = command("pipeline.mine", "--run_dir", run_dir, *prism.options)
    assert done.returncode == 4 and f"ERROR {shard} is not what" in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("random", "embeddings/*/*.npy"), ("random", "work/*/found/*.npz"), ("random", "triplets/*.tfrecord"),
        ("spread", "work/*/groups/*.npz"), ("spread", "work/*/pack-rows.npy"),
    ],
)  # fmt: skip
def test_a_killed_run_continues_to_the_same_triplets(corpus, expected, tmp_path, name, pattern):
    """kill -9 as soon as a stage has left its first file."""
    run_dir = shutil.copytree(corpus, tmp_path / "run")
    call = [sys.executable, "-m", "pipeline.mine", "--run_dir", str(run_dir), *FLAGS[name]]
    killed = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    round = Run(run_dir).round(0)
    while killed.poll() is None and not list(round.path.glob(pattern)):
        os.sched_yield()
    killed.kill()
    killed.wait()
    assert mine.main(["--run_dir", str(run_dir), *FLAGS[name]]) == 0
    assert digest_of(run_dir) == expected[name]
    assert not list(run_dir.rglob(".*tmp*")) and not (round.path / "work").exists()
