"""What a newcomer types: --help, a wrong flag, the doctor, the installed commands, a notebook."""

import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from pipeline import command, doctor, job, mine, records
from pipeline.records import InputError
from pipeline.selection import Rule, mine_arrays
from trainer import train


@pytest.mark.parametrize("name", command.COMMANDS)
def test_help_fits_a_screen(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        command.importlib.import_module(command.COMMANDS[name]).main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert 8 < len(lines) <= 40 and max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        ("--margn", "--margin"), ("--margn=.3", "--margin"), ("--negative", "--negatives"), ("--runer=x", "--runner"),
        ("--anchor", "--anchors"),
    ],
)  # fmt: skip
def test_a_wrong_flag_names_the_one_that_was_meant(digits, found, meant):
    with pytest.raises(InputError, match=rf"unknown option {found}; did you mean {meant}\?"):
        mine.main(["--run_dir", str(digits), found])


def test_a_wrong_flag_beside_an_engines_own(capsys):
    """A job server has options that Beam's Python side does not know; those that all but name one of ours are ours."""
    ours = ["--margin", "--pick"]
    assert job.beam_options(["--runner=PortableRunner", "--job_endpoint=embed", "--parallelism=4"], ours)
    with pytest.raises(InputError, match="unknown option --margn; did you mean --margin"):
        job.beam_options(["--runner=PortableRunner", "--job_endpoint=embed", "--margn", "4"], ours)
    with pytest.raises(SystemExit):
        train.main(["--run_dir", "nowhere", "--epoch", "2"])
    assert "unknown option --epoch; did you mean --epochs?" in capsys.readouterr().err


def test_the_doctor_finds_nothing_wrong_with_a_mined_run(mined, capsys, tmp_path):
    summary = tmp_path / "s.json"
    assert doctor.main(["--run_dir", str(mined), "--summary_json", str(summary)]) == 0
    said = capsys.readouterr().out
    assert "ok    train              1,258 rows of 10 classes, every checksum right" in said
    assert f"next               python -m trainer.train --run_dir {mined}" in said and "BAD" not in said
    assert f"ok    tensorflow         {metadata.version('tensorflow')}" in said


def test_the_doctor_names_what_is_broken_and_goes_on(mined, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(mined, tmp_path / "run")
    [shard] = (run / "rounds/0000/triplets").glob("*.tfrecord")
    shard.write_bytes(shard.read_bytes()[:-1])
    [index] = (run / "corpus").glob("eval-*.index.npy")
    index.unlink()
    asked = ["numpy>=99", "nowhere-to-be-found>=1", "rich>=1", "pyyaml>=1; extra == 'x'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: asked)
    with command.hold(run, "mine"):
        assert doctor.main(["--run_dir", str(run)]) == 4
    said = capsys.readouterr().out
    for line in (
        f"BAD   numpy              {np.__version__}; pip install 'numpy>=99'",
        "BAD   nowhere-to-be-found not installed; pip install 'nowhere-to-be-found>=1'",
        "warn  lock",
        "is held by mine, process",
        f"BAD   corpus             {index} is missing",
        f"BAD   rounds             {shard} is not what",
        "4 to mend",
    ):
        assert line in said, line
    assert "pyyaml" not in said


def test_the_doctor_before_there_is_anything(tmp_path, capsys):
    assert doctor.main(["--run_dir", str(tmp_path / "run")]) == 0
    assert "not there yet; ingest makes it" in capsys.readouterr().out
    (tmp_path / "run").mkdir()
    assert doctor.main(["--run_dir", str(tmp_path / "run")]) == 0
    assert "Next: python -m pipeline.ingest" in capsys.readouterr().out


@pytest.mark.parametrize("pick", ["random", "nearest"])
def test_arrays_in_memory_give_the_triplets_of_the_run_directory(digits, tmp_path, pick):
    run = shutil.copytree(digits, tmp_path / "run")
    options = ["--pick", pick, "--positives", "2", "--negatives", "semi-hard,hard", "--pack_rows", "3"]
    assert mine.main(["--run_dir", str(run), *options]) == 0
    written = {
        tuple(int(pack["row"][pack[side][0]]) for side in ("anchor", "positive", "negative"))
        for pack in records.read_packs(str(run))
    }
    split = records.open_corpus(run).split("train")
    [path] = run.glob("rounds/0000/embeddings/*/*.npy")
    rule = Rule(shares=(("semi-hard", 1.0), ("hard", 1.0)), pick=pick, positives=2)
    # Labels whose order is not that of the rows, and rows that are no longer normalised.
    embeddings, labels = np.load(path) * np.float32(3), split.class_of(np.arange(split.rows))
    found, counts = mine_arrays(embeddings, labels, rule)
    assert set(zip(found.anchor.tolist(), found.positive.tolist(), found.negative.tolist(), strict=True)) == written
    assert counts["pairs"] == 2 * split.rows
    back = np.random.default_rng(0).permutation(split.rows)
    shuffled, _ = mine_arrays(embeddings[back], labels[back], rule)
    assert (labels[back][shuffled.anchor] == labels[back][shuffled.positive]).all()
    assert (labels[back][shuffled.anchor] != labels[back][shuffled.negative]).all()


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (np.ones((4, 2)), [0, 1], r"found \(4, 2\), \(2,\)"),
        (np.ones(4), [0] * 4, r"found \(4,\)"),
        (np.array([[1.0, 0], [0, 0], [np.nan, 1]]), [0, 0, 1], r"2 embeddings are zero or not finite: rows \[1, 2\]"),
    ],
)
def test_wrong_arrays_are_refused(embeddings, labels, message):
    with pytest.raises(ValueError, match=message):
        mine_arrays(embeddings, np.array(labels))


@pytest.mark.slow
def test_the_wheel_brings_the_commands(tmp_path):
    """Installed into an environment that sees our dependencies and not this folder, and used from there."""
    root = tmp_path / "source"  # a copy: what an earlier build left in build/ would go into the wheel
    for name in ("pipeline", "trainer"):
        shutil.copytree(Path(__file__).parent.parent / name, root / name)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(Path(__file__).parent.parent / name, root)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(root)], check=True, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        assert not [name for name in file.namelist() if name.startswith("tests")]
    venv.create(tmp_path / "env", with_pip=False)
    [site] = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(str(Path(np.__file__).parent.parent) + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(tmp_path / "env/bin/python"), "install", "-q", "--no-deps"]
    subprocess.run([*install, "--ignore-installed", str(wheel)], check=True, cwd=tmp_path)

    def run(name, *arguments):
        done = subprocess.run(
            [tmp_path / "env/bin" / f"triplet-{name}", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name in command.COMMANDS:
        assert f"usage: python -m {command.COMMANDS[name]}" in run(name, "--help")
    run("ingest", "--run_dir", "run", "--source", "digits")
    assert "triplets in" in run("mine", "--run_dir", "run")
    assert "image passes" in run("train", "--run_dir", "run")
    assert "everything as listed" in run("records", "verify", "run")
    assert "nothing is wrong" in run("doctor", "--run_dir", "run")
    where = [tmp_path / "env/bin/python", "-c", "import pipeline; print(pipeline.__file__)"]
    said = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.startswith(str(tmp_path)), said
