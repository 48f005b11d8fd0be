"""Rounds in turn and side by side, in two processes that stay alive; the best checkpoint; when to stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from conftest import command as run_command

from pipeline import command, records, rounds
from pipeline.records import InputError
from pipeline.worker import Worker


def of_round(run, number):
    return json.loads((records.round_dir(run, number) / "train" / "metrics.json").read_text())


@pytest.mark.slow
def test_side_by_side_every_set_is_mined_from_its_own_checkpoint(digits, tmp_path, capfd):
    run = shutil.copytree(digits, tmp_path / "run")
    assert rounds.main(["--run_dir", str(run), "--rounds", "4", "--overlap"]) == 0
    corpus = records.open_corpus(run)
    mined = [of_round(run, number)["mined_round"] for number in range(4)]
    assert mined == sorted(mined) and mined[0] == 0 and all(m <= n for n, m in enumerate(mined))
    steps = 0
    for number, of_it in enumerate(mined):
        metrics, manifest = of_round(run, number), records.open_triplets(run, of_it, corpus)
        checkpoint = records.checkpoint_path(run, of_it)
        assert manifest["checkpoint_digest"] == records.checkpoint_digest(records.load_checkpoint(checkpoint))
        before = of_round(run, of_it - 1)["total_steps"] if of_it else 0
        assert metrics["staleness"] == [steps - before, steps - before + metrics["steps"] - 1]
        steps += metrics["steps"]
        assert metrics["total_steps"] == steps
    lines = capfd.readouterr().out.splitlines()
    assert [int(line.split()[1]) for line in lines[2:6]] == mined
    found = records.round_dir(run, 4) / "evaluation-validation.json"
    found.unlink()  # as if it had been stopped before the last round was looked at
    assert rounds.main(["--run_dir", str(run), "--rounds", "1", "--overlap"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert found.exists() and [int(line.split()[0]) for line in lines[2:4]] == [3, 4]
    assert of_round(run, 4)["mined_round"] == 4  # not of the last call's sets


def test_a_set_of_the_overlap_is_reproduced_from_its_manifest(mined, tmp_path):
    """A checkpoint beyond the mined round: the trainer takes the older triplets only when it is told to."""
    from trainer import train

    run = shutil.copytree(mined, tmp_path / "run")
    for number in (0, 1):
        assert train.main(["--run_dir", str(run), "--newest", "--seed", "4"]) == 0
        assert of_round(run, number)["mined_round"] == 0
    assert of_round(run, 1)["staleness"][0] == of_round(run, 0)["steps"]
    assert train.main(["--run_dir", str(run)]) == 0  # round 0 is trained already
    assert not records.checkpoint_path(run, 3).exists()


def test_a_worker_that_was_ended_is_not_started_again():
    """Of two side by side the miner's thread may ask once more, and left a process behind."""
    worker = Worker("pipeline.progress", lock=-1)
    worker.end()
    ended = worker._process
    assert worker.call("pipeline.records") != 0
    assert worker._process is ended and ended.poll() is not None


@pytest.mark.slow
def test_a_killed_miner_and_a_killed_trainer_come_back(digits, tmp_path):
    runs = [shutil.copytree(digits, tmp_path / name) for name in ("calm", "killed")]
    call = ["--rounds", "1", "--mine=--packs triplets --positives 3"]
    assert run_command("pipeline.rounds", "--run_dir", runs[0], *call).returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.rounds", "--run_dir", str(runs[1]), *call],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    workers: list[int] = []  # the miner, the trainer
    for pattern in ("rounds/0000/embeddings/*", "rounds/0000/train/logs"):
        while not list(runs[1].glob(pattern)):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
            workers = workers or [int(pid) for pid in file.read().split()]
        os.kill(workers["train" in pattern], signal.SIGKILL)
    out, log = process.communicate()
    assert process.returncode == 0, log
    assert log.count("was killed by SIGKILL; it is started again") == 2
    digests = [json.loads(records.manifest_path(run, 0).read_text())["triplet_digest"] for run in runs]
    assert digests[0] == digests[1]
    assert of_round(runs[0], 0)["next_checkpoint_digest"] == of_round(runs[1], 0)["next_checkpoint_digest"]


@pytest.mark.parametrize("mode", [[], ["--overlap"]])
def test_a_failing_step_ends_the_rounds_with_its_code(mode, digits, tmp_path, capfd):
    run = shutil.copytree(digits, tmp_path / "run")
    assert rounds.main(["--run_dir", str(run), "--mine=--margin -1", *mode]) == 4
    assert "margin" in capfd.readouterr().err


def test_side_by_side_what_is_found_in_a_round_ends_the_rounds(digits, tmp_path, capfd, monkeypatch):
    """In the miner's thread, while the other one trains: both must end, and say why."""
    looked_at = []

    def look_at(self, worker, number):
        assert worker is self.miner
        looked_at.append(number)
        if collapses:
            raise InputError("collapsed")
        return True

    monkeypatch.setattr(rounds.Rounds, "look_at", look_at)
    for collapses in (False, True):
        run = shutil.copytree(digits, tmp_path / f"run-{collapses}")
        with pytest.raises(InputError, match="collapsed") if collapses else nullcontext():
            assert rounds.main(["--run_dir", str(run), "--rounds", "50", "--overlap"]) == 0
        assert not records.checkpoint_path(run, 9).exists()
    assert looked_at == [0, 0]
    out = capfd.readouterr().out
    assert f"best: {tmp_path / 'run-False'}" in out
    assert f"pipeline.mine --threads {max(1, (os.cpu_count() or 1) // 2)} " in out, "the other half is the trainer's"


def test_the_run_directory_is_held_while_a_worker_lives(tmp_path):
    with command.hold(tmp_path, "rounds") as lock:
        worker = Worker("pipeline.mine", lock)
    with pytest.raises(command.Locked), command.hold(tmp_path, "mine"):
        pass
    worker.end()
    with command.hold(tmp_path, "mine"):
        pass


def fake_rounds(run, *found):
    """Rounds whose checkpoints have these (MAP@R, mean distance) on the validation split, and a loss at the margin."""
    for number, (quality, distance) in enumerate(found):
        directory = records.round_dir(run, number)
        (directory / "train").mkdir(parents=True, exist_ok=True)
        records.write_json(directory / "evaluation-validation.json", {"map_at_r": quality, "mean_distance": distance})
        records.write_json(directory / "train/metrics.json", {"margin": 0.2, "epochs": [{"loss": 0.199}]})
        if number:
            shutil.copytree(run / "rounds/0000/checkpoint", directory / "checkpoint")
    arguments = rounds.argparse.Namespace(run_dir=run)
    return rounds.Rounds(arguments, {}, records.open_corpus(run), None, None)


def test_the_best_checkpoint_is_kept(digits, tmp_path):
    run = shutil.copytree(digits, tmp_path / "run")
    state = fake_rounds(run, (0.5, 1.5), (0.7, 1.5), (0.7, 1.5), (0.6, 1.5))
    assert "round 1's, validation MAP@R 0.700" in state.keep_best()
    assert json.loads((run / "best/best.json").read_text())["round"] == 1
    records.load_checkpoint(run / "best/model.keras")
    assert [state.rounds_without_gain(last) for last in range(4)] == [0, 0, 1, 2]


def test_a_collapse_stops_the_rounds_and_says_what_to_change(digits, tmp_path):
    run = shutil.copytree(digits, tmp_path / "run")
    state = fake_rounds(run, (0.5, 1.5), (0.2, 0.1), (0.1, 0.1), (0.4, 1.5))
    state.stop_if_collapsed(0)  # a young round may
    with pytest.raises(InputError, match=r"(?s)round 1: the embedding has collapsed.*round 0's.*--learning_rate"):
        state.stop_if_collapsed(1)
    state.stop_if_collapsed(2)  # a loss at the margin alone is no collapse


@pytest.mark.parametrize(
    ("steps", "plain", "flags"),
    [
        (None, False, "--online --margin 1.0"), (5, False, "--online --margin 1.0 --steps 5"), (0, False, "--init"),
        (None, True, "--online"), (5, True, "--online --steps 5"), (0, True, "--init"),
    ],
)  # fmt: skip
def test_the_warm_up_has_the_margin_of_the_rounds_unless_they_are_plain(digits, steps, plain, flags):
    arguments = rounds.argparse.Namespace(run_dir=digits, warmup_steps=steps, plain=plain)
    assert " ".join(rounds.Rounds(arguments, {}, records.open_corpus(digits), None, None).warm_up()) == flags


def test_rounds_end_after_patience(digits, tmp_path, capfd):
    """With a learning rate that destroys, the first rounds are no better than round 0's checkpoint."""
    run = shutil.copytree(digits, tmp_path / "run")
    from trainer import evaluate, train

    assert train.main(["--run_dir", str(run), "--online", "--steps", "60"]) == 0
    assert evaluate.main(["--run_dir", str(run), "--split", "validation"]) == 0
    call = ["--rounds", "9", "--patience", "1", "--train=--learning_rate 0.5", "--mine=--anchors 200"]
    code = rounds.main(["--run_dir", str(run), *call])
    out = capfd.readouterr().out
    if code == 0:
        assert "no better validation MAP@R for 1 rounds: done" in out
        assert json.loads((run / "best/best.json").read_text())["round"] == 0
        assert f"report: {run / 'index.html'}" in out and (run / "index.html").exists()
    else:  # it collapsed, or left numbers that are none
        assert code == 4
    assert not records.checkpoint_path(run, 3).exists()
    assert (records.round_dir(run, 0) / "report.html").exists()


def test_rounds_go_on_without_a_report_but_end_when_stopped(digits, tmp_path, caplog, monkeypatch):
    run = shutil.copytree(digits, tmp_path / "run")
    state = fake_rounds(run, (0.5, 1.5))
    records.write_json(records.round_dir(run, 0) / "train/metrics.json", {"mined_round": 0})
    monkeypatch.setattr(command.log, "propagate", True)
    for code, ends in ((0, False), (1, False), (4, False), (3, True), (143, True)):
        worker = SimpleNamespace(call=lambda *call, code=code: code)
        with pytest.raises(rounds.StepFailed) if ends else nullcontext():
            state.report(worker, 0)
    assert [record.message for record in caplog.records] == ["round 0 goes without a report"] * 2
