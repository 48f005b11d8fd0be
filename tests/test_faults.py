"""`make test-faults` with fewer kills, and stops that are not kills."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone

import faults
import numpy as np
import pytest
from conftest import command as run_command

from pipeline import command, records
from pipeline.records import InputError


@pytest.mark.slow
@pytest.mark.parametrize("name", faults.BAD)
def test_bad_input(name, mined, tmp_path):
    right, said = faults.try_bad(name, mined, tmp_path / "scratch")
    assert right, said


@pytest.mark.slow
def test_kills_change_nothing(tmp_path):
    done = faults.kills("digits", tmp_path, 6, seed=1)
    hit = {kill.stage for kill in done if not kill.was_done}
    assert len(hit) >= 5 and hit <= {"ingest", "warm-up", "embed", "scan", "write", "train"}
    assert all(kill.same for kill in done), [kill for kill in done if not kill.same]


@pytest.mark.parametrize(("number", "options"), [(signal.SIGTERM, []), (signal.SIGINT, ["--stored_rows", "300"])])
def test_a_signal_ends_training_with_its_state_and_it_goes_on(mined, tmp_path, number, options):
    """The stop comes after some steps; the weights at the end are those of an undisturbed run."""
    runs = [faults.shutil.copytree(mined, tmp_path / name) for name in ("whole", "stopped")]
    epochs = ["--epochs", "8", *options]
    assert run_command("trainer.train", "--run_dir", runs[0], *epochs).returncode == 0
    summary = tmp_path / "summary.json"
    call = ["-m", "trainer.train", "--run_dir", str(runs[1]), *epochs, "--summary_json", str(summary)]
    process = subprocess.Popen([sys.executable, *call], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    while "epoch 1" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(number)
    sent = time.monotonic()
    _, log = process.communicate(timeout=60)
    assert process.returncode == 128 + number and time.monotonic() - sent < 5
    assert f"WARNING stopped by {number.name}" in log
    assert json.loads(summary.read_text())["exit_code"] == 128 + number
    assert (runs[1] / "rounds/0000/train/state.npz").exists()
    again = run_command("trainer.train", "--run_dir", runs[1], *epochs)
    assert again.returncode == 0 and "goes on at step" in again.stdout
    assert faults.outcome(runs[0], "train") == faults.outcome(runs[1], "train")
    assert not (runs[1] / "rounds/0000/train/state.npz").exists()


def test_sigterm_reaches_the_workers_of_rounds(digits, tmp_path):
    run = faults.shutil.copytree(digits, tmp_path / "run")
    more = ["--rounds", "1", "--mine=--packs triplets --positives 4"]
    call = [sys.executable, "-m", "pipeline.rounds", "--run_dir", str(run), *more]
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(run.glob("rounds/0000/embeddings/*")):
        assert process.poll() is None
        time.sleep(0.01)
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        workers = [int(pid) for pid in file.read().split()]
    assert len(workers) == 2 and (run / ".lock").read_text().startswith(f"rounds, process {process.pid} ")
    process.terminate()
    assert process.wait(60) == 143
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert run_command("pipeline.mine", "--run_dir", run, "--positives", "4").returncode == 0


def test_a_dead_holder_does_not_block_and_its_files_go(tmp_path):
    code = "import os, sys; from pathlib import Path; from pipeline import command\n"
    code += "with command.hold(Path(sys.argv[1]), 'mine'): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds" / ".x.1.ab.tmp.npy").write_bytes(b"half")
    with command.hold(tmp_path, "train"):
        assert (tmp_path / ".lock").read_text().startswith("train, process")
        assert not list(tmp_path.rglob("*.tmp*"))
        with pytest.raises(command.Locked, match=r"held by train, process \d+ on "), command.hold(tmp_path, "mine"):
            pass
    assert not (tmp_path / ".lock").read_text()


def test_summary_of_a_mined_round(mined, tmp_path):
    summary = tmp_path / "summary.json"
    done = run_command("pipeline.mine", "--run_dir", mined, "--summary_json", summary)
    told = json.loads(summary.read_text())
    manifest = json.loads(records.manifest_path(mined, 0).read_text())
    assert done.returncode == told["exit_code"] == 0
    assert told["triplets"] == manifest["triplets"] and told["triplet_digest"] == manifest["triplet_digest"]


def test_a_refusal_is_in_the_summary(tmp_path):
    summary = tmp_path / "summary.json"
    done = run_command("pipeline.mine", "--run_dir", tmp_path / "run", "--summary_json", summary)
    told = json.loads(summary.read_text())
    assert done.returncode == told["exit_code"] == 4 and "corpus.json is missing" in told["message"]


def test_deadlines():
    zone = timezone(timedelta(hours=2))
    now = datetime(2030, 1, 31, 12, 0, tzinfo=zone)
    assert command.parse_deadline("13:30", now) == datetime(2030, 1, 31, 13, 30, tzinfo=zone)
    assert command.parse_deadline("06:30", now) == datetime(2030, 2, 1, 6, 30, tzinfo=zone)
    assert command.parse_deadline("2030-02-02T10:00", now) == datetime(2030, 2, 2, 10, 0, tzinfo=zone)
    assert command.parse_deadline("2030-02-02T10:00+00:00", now) == datetime(2030, 2, 2, 10, 0, tzinfo=UTC)
    for wrong in ("soon", "25:00", "2030-13-01T00:00"):
        with pytest.raises(InputError, match="--deadline takes"):
            command.parse_deadline(wrong, now)


def test_a_warm_up_that_is_done_is_not_done_again(digits, tmp_path, capsys):
    run = faults.shutil.copytree(digits, tmp_path / "run")
    from trainer import train

    call = ["--run_dir", str(run), "--online", "--steps", "5"]
    assert train.main(call) == 0
    before = faults.outcome(run, "warmup")
    assert train.main(call) == 0
    assert "warmed up already" in capsys.readouterr().out
    assert faults.outcome(run, "warmup") == before
    assert np.isfinite(records.load_checkpoint(records.checkpoint_path(run, 0)).get_weights()[0]).all()
