"""Runs of the real commands that many tests look at."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import ingest, mine, records, report
from trainer import evaluate, train

MARKUP = "<script>alert(1)</script> & \"<img src=x onerror='alert(2)'>"


def command(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs one of our commands as a user does."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """A run directory with digits ingested and round 0's checkpoint; copy it before changing it."""
    run_dir = tmp_path_factory.mktemp("digits") / "run"
    assert ingest.main(["--run_dir", str(run_dir), "--source", "digits"]) == 0
    assert train.main(["--run_dir", str(run_dir), "--init"]) == 0
    return run_dir


@pytest.fixture
def fresh_run(digits, tmp_path) -> Path:
    """A copy of `digits` to mine and train in."""
    return Path(shutil.copytree(digits, tmp_path / "run"))


@pytest.fixture(scope="session")
def mined(digits, tmp_path_factory) -> Path:
    """`digits` with round 0 mined by default options; not to be changed."""
    run_dir = Path(shutil.copytree(digits, tmp_path_factory.mktemp("mined") / "run"))
    assert mine.main(["--run_dir", str(run_dir)]) == 0
    return run_dir


@pytest.fixture(scope="session")
def marked(tmp_path_factory) -> Path:
    """A run with a trained round and its report, whose ids and labels hold markup; not to be changed."""
    from sklearn.datasets import load_digits

    digits, directory = load_digits(n_class=4), tmp_path_factory.mktemp("marked")
    np.savez(
        directory / "digits.npz", images=digits.images.astype(np.uint8) * 15,
        labels=np.array([f"{MARKUP} {label}" for label in digits.target]),
        ids=np.array([f"{number}\t{MARKUP}" for number in range(len(digits.target))]),
    )  # fmt: skip
    run_dir = directory / "run"
    call = ["--run_dir", str(run_dir)]
    assert ingest.main([*call, "--source", f"arrays:{directory / 'digits.npz'}"]) == 0
    assert train.main([*call, "--init"]) == 0
    assert mine.main([*call, "--negatives", "semi-hard,hard"]) == 0
    assert train.main(call) == 0
    assert evaluate.main([*call, "--round", "0", "1", "--split", "validation"]) == 0
    assert report.main(call) == 0
    return run_dir


def read_packs(run_dir: Path, number: int = 0) -> list[dict]:
    """Every pack of a mined round."""
    return list(records.read_packs(run_dir, number))
