"""In-batch training before anything is mined."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import copied
from interrupted import ctrl_c_at

from pipeline.corpus.corpus import Corpus
from pipeline.embedding.network import load_network
from pipeline.errors import InputError
from pipeline.files.layout import Run
from trainer import init, warmup
from trainer.options import WarmupOptions
from trainer.warming import warm_up


def outcome(run_dir):
    """Digest of the checkpoint, and the optimizer's variables."""
    round = Run(run_dir).round(0)
    with np.load(round.optimizer) as file:
        return load_network(round.checkpoint).digest(), [file[name].tobytes() for name in file.files]


def test_as_many_passes_as_asked_and_the_loss_falls(small_run, capsys):
    before = load_network(Run(small_run).round(0).checkpoint).digest()
    assert warmup.main(["--run_dir", str(small_run), "--epochs", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 4 * math.ceil(Corpus.open(small_run).split("train").rows / 40)
    assert told["last_loss"] < told["first_loss"]
    found = outcome(small_run)
    assert found[0] == told["digest"] != before
    assert warmup.main(["--run_dir", str(small_run), "--epochs", "4"]) == 0
    assert "warmed up already; nothing to do" in capsys.readouterr().out
    assert outcome(small_run) == found
    moved = shutil.copytree(small_run, small_run.with_name("moved"))
    assert warm_up(moved, WarmupOptions(epochs=4)).path == str(Run(moved).round(0).checkpoint)


@pytest.mark.parametrize(("model", "stops"), [(None, 1), ("networks:dropout", 3)])
def test_stopped_and_started_again_it_ends_at_the_same_weights(small_run, tmp_path, model, stops):
    """Also where a network with Dropout is loaded, which draws its generator's seed as it is."""
    shutil.rmtree(small_run / "rounds")
    if model:
        assert init.main(["--run_dir", str(small_run), "--model", model]) == 0
    whole, options = copied(small_run, tmp_path / "whole"), WarmupOptions(steps=6)
    warm_up(whole, options)
    unfinished = Run(small_run).round(0).train / "warmup.npz"
    for step in range(stops):
        with pytest.raises(KeyboardInterrupt), ctrl_c_at(f"goes on at step {step}" if step else "warm-up on"):
            warm_up(small_run, options)
        assert unfinished.exists()
    warm_up(small_run, options)
    assert outcome(small_run) == outcome(whole) and not unfinished.exists()


@pytest.mark.parametrize("loss", ["semi-hard", "batch-hard", "n-pair", "semi-hard+n-pair"])
def test_with_a_memory_it_learns_otherwise_and_goes_on_where_it_was(small_run, tmp_path, loss):
    """Stopped before the memory is used, and after."""
    options = WarmupOptions(steps=6, loss=loss, memory_rows=200, memory_start=0.4)
    without, whole = copied(small_run, tmp_path / "without"), copied(small_run, tmp_path / "whole")
    warm_up(without, replace(options, memory_rows=0))
    warm_up(whole, options)
    for step in range(5):
        with pytest.raises(KeyboardInterrupt), ctrl_c_at(f"goes on at step {step}" if step else "warm-up on"):
            warm_up(small_run, options)
    warm_up(small_run, options)
    assert outcome(small_run) == outcome(whole) != outcome(without)


def test_a_collapse_is_said(small_run, capsys):
    """A rate at which all embeddings come to lie together."""
    assert warmup.main(["--run_dir", str(small_run), "--steps", "20", "--learning_rate", "3"]) == 0
    said = capsys.readouterr().out
    assert "COLLAPSED: all embeddings lie together" in said and "another --learning_rate than 3" in said
    assert "If the network is your own, make it anew with trainer.init" in said  # a warm-up alone would make ours


def test_a_loss_that_is_no_number_ends_it_at_once(small_run):
    before = Run(small_run).round(0).checkpoint.read_bytes()
    call = ["--run_dir", str(small_run), "--learning_rate", "1e38", "--steps", "50"]
    with pytest.raises(InputError, match=r"the loss became nan in step \d+; .* Lower --learning_rate"):
        warmup.main(call)
    assert Run(small_run).round(0).checkpoint.read_bytes() == before
    assert not (Run(small_run).round(0).train / "warmup.npz").exists()


def test_a_mined_round_and_a_damaged_corpus_are_refused(small_mined, small_run):
    with pytest.raises(InputError, match="round 0 is mined already.* remove .*0000/triplets first"):
        warmup.main(["--run_dir", str(small_mined)])
    [path] = (small_run / "corpus").glob("train-*.index.npy")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="train-.*index.npy is not what"):
        warmup.main(["--run_dir", str(small_run)])


def test_wrong_options_end_with_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        warmup.main(["--run_dir", "nowhere", "--steps", "0"])
    assert ended.value.code == 2 and "steps must be above 0; found 0" in capsys.readouterr().err
