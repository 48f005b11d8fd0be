"""How much memory commands take at the most, whatever the corpus holds."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

MOST = 2.0  # GB
PEAK = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", *sys.argv[1:]], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6)
sys.exit(done.returncode)
"""


def peak(*call, code=0, says=""):
    """Of a command, in GB. code, says: how it is to end."""
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, call)], capture_output=True, text=True)
    assert done.returncode == code and says in done.stderr and "Warning" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    return float(done.stdout)


def test_images_of_many_megapixels_are_not_held_side_by_side(tmp_path):
    """Eight of 49 megapixels, one of 98, and one of 200, which is rejected without being decoded."""
    source, run, rng = tmp_path / "source", tmp_path / "run", np.random.default_rng(0)
    sizes = [(7000 + n, 7000) for n in range(8)] + [(9900, 9900), (20_000, 10_000)]
    for number, size in enumerate(sizes):
        path = source / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist())).save(path)
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.UnitNormalization()(keras.layers.Dense(4)(keras.layers.Flatten()(inputs)))
    keras.Model(inputs, outputs).save(tmp_path / "small.keras")
    held_out = ["--validation_share", "0", "--eval_share", "0", "--max_rejected", "0.2"]
    calls = [
        ["pipeline.ingest", "--source", f"images:{source}", *held_out],
        ["trainer.init", "--model", tmp_path / "small.keras"],
        ["pipeline.mine", "--negatives", "semi-hard,hard", "--margin", "2"],
        ["trainer.train"],
    ]
    peaks = {call[0]: peak(*call, "--run_dir", run) for call in calls}
    assert max(peaks.values()) < MOST, peaks
    [rejected] = (run / "corpus" / "rejected.jsonl").read_text().splitlines()
    assert "9.jpg" in rejected and "more than 100,000,000 pixels" in rejected


def test_a_text_of_a_hundred_megabytes_is_rejected_or_refused(tmp_path):
    rows, text = [(f"row {n} of some", n % 4) for n in range(40)], "word " * 20_000_000
    csv, jsonl = tmp_path / "t.csv", tmp_path / "t.jsonl"
    csv.write_text("\n".join(["text,label", *(f"{text},{label}" for text, label in [*rows, (text, 1)])]))
    lines = (f'{{"text": "{text}", "label": "{label}"}}\n' for text, label in [*rows, (text, 1)])
    jsonl.write_text("".join(lines))
    call = ["pipeline.ingest", "--run_dir"]
    assert peak(*call, tmp_path / "csv", "--source", f"csv:{csv}") < MOST
    [rejected] = (tmp_path / "csv" / "corpus" / "rejected.jsonl").read_text().splitlines()
    assert "line 42" in rejected and "longer than" in rejected
    says = f"{jsonl}: a row is so long that reading it takes more than a gigabyte of memory. Shorten it"
    assert peak(*call, tmp_path / "jsonl", "--source", f"jsonl:{jsonl}", code=4, says=says) < MOST
