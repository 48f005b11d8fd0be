"""Run directories that many tests look at, made by the real commands."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import ingest, mine, report
from pipeline.mining.manifest import read_packs
from trainer import evaluate, init, train

# A shell that starts this in the background has Ctrl-C ignored; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

BANKING77 = Path(__file__).parent / "data" / "banking77.csv"
MARKUP = "<script>alert(1)</script> & \"<img src=x onerror='alert(2)'>"


def command(module: str, *arguments: object, **how: object) -> subprocess.CompletedProcess[str]:
    """Runs one of our commands as a user does. how: for subprocess.run."""
    call = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, stdin=subprocess.DEVNULL, **how)


def copied(run_dir: Path, to: Path) -> Path:
    """A copy of a run directory, to change."""
    return Path(shutil.copytree(run_dir, to / "run"))


def edit(manifest: Path, **values: object) -> None:
    """Changes fields of a manifest as a user may: without its checksum."""
    told = json.loads(manifest.read_text()) | values
    manifest.write_text(json.dumps({name: value for name, value in told.items() if name != "checksum"}))


def packs_of(run_dir: Path, number: int = 0) -> list[dict]:
    """Every pack of a mined round."""
    return list(read_packs(run_dir, number))


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """300 digits, ingested, with round 0's checkpoint: where the data do not matter. Not to be changed."""
    from sklearn.datasets import load_digits

    digits, directory = load_digits(), tmp_path_factory.mktemp("small")
    images, labels = digits.images[:300].astype(np.uint8) * 15, digits.target[:300].astype(str)
    np.savez(directory / "digits.npz", images=images, labels=labels)
    run_dir = directory / "run"
    assert ingest.main(["--run_dir", str(run_dir), "--source", f"arrays:{directory / 'digits.npz'}"]) == 0
    assert init.main(["--run_dir", str(run_dir)]) == 0
    return run_dir


@pytest.fixture(scope="session")
def small_mined(small, tmp_path_factory) -> Path:
    """`small` with round 0 mined by default options. Not to be changed."""
    run_dir = copied(small, tmp_path_factory.mktemp("small-mined"))
    assert mine.main(["--run_dir", str(run_dir)]) == 0
    return run_dir


@pytest.fixture
def small_run(small, tmp_path) -> Path:
    """A copy of `small` to change."""
    return copied(small, tmp_path)


@pytest.fixture
def bare(small, tmp_path) -> Path:
    """A copy of `small` without a checkpoint."""
    run_dir = copied(small, tmp_path)
    shutil.rmtree(run_dir / "rounds")
    return run_dir


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    """A run directory with banking77's extract, and no checkpoint. Not to be changed."""
    run_dir = tmp_path_factory.mktemp("texts") / "run"
    assert ingest.main(["--run_dir", str(run_dir), "--source", f"csv:{BANKING77},label=category"]) == 0
    return run_dir


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """All digits, ingested, with round 0's checkpoint. Not to be changed."""
    run_dir = tmp_path_factory.mktemp("digits") / "run"
    assert ingest.main(["--run_dir", str(run_dir), "--source", "digits"]) == 0
    assert init.main(["--run_dir", str(run_dir)]) == 0
    return run_dir


@pytest.fixture
def fresh_run(digits, tmp_path) -> Path:
    """A copy of `digits` to mine and train in."""
    return copied(digits, tmp_path)


@pytest.fixture(scope="session")
def mined(digits, tmp_path_factory) -> Path:
    """`digits` with round 0 mined by default options. Not to be changed."""
    run_dir = copied(digits, tmp_path_factory.mktemp("mined"))
    assert mine.main(["--run_dir", str(run_dir)]) == 0
    return run_dir


@pytest.fixture(scope="session")
def marked(tmp_path_factory) -> Path:
    """A trained round with its report, whose ids and labels hold markup. Not to be changed."""
    from sklearn.datasets import load_digits

    digits, directory = load_digits(n_class=4), tmp_path_factory.mktemp("marked")
    np.savez(
        directory / "digits.npz", images=digits.images.astype(np.uint8) * 15,
        labels=np.array([f"{MARKUP} {label}" for label in digits.target]),
        ids=np.array([f"{number}\t{MARKUP}" for number in range(len(digits.target))]),
    )  # fmt: skip
    call = ["--run_dir", str(directory / "run")]
    assert ingest.main([*call, "--source", f"arrays:{directory / 'digits.npz'}"]) == 0
    assert init.main(call) == 0
    assert mine.main([*call, "--negatives", "semi-hard,hard"]) == 0
    assert train.main(call) == 0
    assert evaluate.main([*call, "--round", "0", "1", "--split", "validation"]) == 0
    assert report.main(call) == 0
    return directory / "run"
