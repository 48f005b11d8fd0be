"""kill -9 and SIGTERM at many instants of `pipeline.rounds`: what is started again ends as undisturbed rounds do."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import command, copied
from interrupted import QUICK, outcome

from pipeline.files.layout import Run

pytestmark = pytest.mark.slow

# As soon as such a file is there, and so many seconds later; in the order of what happens.
INSTANTS = [
    ("plan.json", 0.0, signal.SIGKILL),
    ("rounds/0000/checkpoint/optimizer.npz", 0.0, signal.SIGKILL),
    ("rounds/0000/embeddings/*/*.npy", 0.0, signal.SIGTERM),
    ("rounds/0000/work/*/found/*", 0.0, signal.SIGKILL),
    ("rounds/0000/triplets/*.tfrecord", 0.0, signal.SIGTERM),
    ("rounds/0000/stats.json", 0.1, signal.SIGKILL),
    ("rounds/0000/train/logs/*", 0.5, signal.SIGTERM),
    ("rounds/0000/train/metrics.json", 0.0, signal.SIGKILL),
    ("rounds/0001/evaluation-validation.json", 0.0, signal.SIGTERM),
    ("rounds/0001/triplets/triplets.json", 0.0, signal.SIGKILL),
    ("rounds/0001/train/logs/*", 0.0, signal.SIGKILL),
    ("rounds/0002/checkpoint/model.keras", 0.0, signal.SIGKILL),
]


def test_rounds_killed_at_many_instants_end_as_undisturbed_ones(small, tmp_path):
    (tmp_path / "quick.toml").write_text(QUICK)
    whole, run = copied(small, tmp_path / "whole"), copied(small, tmp_path / "killed")
    for run_dir in (whole, run):
        shutil.rmtree(run_dir / "rounds")
    arguments = ["--rounds", "2", "--recipe", tmp_path / "quick.toml"]
    assert command("pipeline.rounds", "--run_dir", whole, *arguments).returncode == 0
    hit = 0
    for pattern, later, number in INSTANTS:
        if any(run.glob(pattern)):
            continue  # what was stopped before had come so far
        call = [sys.executable, "-m", "pipeline.rounds", "--run_dir", str(run), *map(str, arguments)]
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while not any(run.glob(pattern)):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        time.sleep(later)
        process.send_signal(number)
        log = process.communicate(timeout=120)[1]
        assert process.returncode in (-number, 0), log
        hit += process.returncode == -number
    assert hit >= 8
    done = command("pipeline.rounds", "--run_dir", run, *arguments)
    assert done.returncode == 0, done.stderr
    assert outcome(run) == outcome(whole)
    assert not [path for path in run.rglob("*") if ".tmp" in path.name or path.name in ("work", "state.npz")]


WARM_UP = """
import sys
from pathlib import Path
from trainer.options import WarmupOptions
from trainer.warming import warm_up
warm_up(Path(sys.argv[1]), WarmupOptions(steps=400), save_seconds=0.0)
"""


def test_a_warm_up_killed_goes_on_from_what_it_saved(small, tmp_path):
    runs = [copied(small, tmp_path / name) for name in ("whole", "killed")]
    state, saved = Run(runs[1]).round(0).train / "warmup.npz", set()
    assert subprocess.run([sys.executable, "-c", WARM_UP, str(runs[0])], capture_output=True).returncode == 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WARM_UP, str(runs[1])], stderr=subprocess.DEVNULL)
        while not state.exists() or state.stat().st_mtime_ns in saved:
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(0.1)
        process.kill()
        process.wait()
        saved.add(state.stat().st_mtime_ns)
    assert subprocess.run([sys.executable, "-c", WARM_UP, str(runs[1])], capture_output=True).returncode == 0
    assert not state.exists()
    contents = [Run(run).round(0).optimizer.read_bytes() for run in runs]
    assert contents[0] == contents[1]  # Adam's moments, and the checkpoint's digest
