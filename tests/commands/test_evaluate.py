"""How good checkpoints are, by the command."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import copied

from pipeline import ingest
from pipeline.corpus.corpus import Corpus
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.network import copy_checkpoint, load_network
from pipeline.errors import InputError
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.reporting.results import Best, Evaluation
from trainer import evaluate, evaluate_embeddings, init, warmup
from trainer.measures.evaluation import Evaluated
from trainer.measures.retrieval import retrieval


def told(capsys, run_dir, *arguments):
    """What the command prints as JSON."""
    assert evaluate.main(["--run_dir", str(run_dir), "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_measures_are_those_of_the_splits_embeddings_and_stay_beside_the_round(small_run, capsys):
    corpus, round = Corpus.open(small_run), Run(small_run).round(0)
    network, split = load_network(round.checkpoint), corpus.split("eval")
    found = told(capsys, small_run, "--nmi")
    expected = retrieval(Embedder(network, corpus.feature).split(split), split.class_of(np.arange(split.rows)))
    measures = found["measures"]["round 0"]
    assert expected.items() <= measures.items() and 0 <= measures["nmi"] <= 1 and 0 <= measures["linear_probe"] <= 1
    assert (found["split"], found["rows"], found["classes"]) == ("eval", split.rows, len(split.labels))
    kept = manifests.read(round.evaluation("eval"), Evaluation)
    assert kept.measures == measures and kept.checkpoint_digest == network.digest()


def test_a_warm_up_makes_retrieval_better_and_pixels_stand_beside_it(small, tmp_path, capsys):
    run_dir = copied(small, tmp_path)
    arguments = ["--retrieval_only", "--split", "validation"]
    before = told(capsys, run_dir, *arguments)["measures"]["round 0"]["map_at_r"]
    assert warmup.main(["--run_dir", str(run_dir), "--steps", "25"]) == 0
    capsys.readouterr()
    assert evaluate.main(["--run_dir", str(run_dir), *arguments]) == 0
    head, columns, pixels, after = capsys.readouterr().out.splitlines()[:4]
    assert head.startswith("validation split: 30 rows of 10 classes (known classes)")
    assert columns.split() == ["R@1", "R@5", "R@10", "R-prec", "MAP@R", "mean", "d"]
    assert pixels.startswith("pixels, 8 x 8") and after.startswith("round 0")
    assert float(after.split()[6]) > before + 0.05


def test_rows_that_have_nothing_to_find_are_said_to_be_no_queries():
    measures = retrieval(np.eye(5, dtype=np.float32), np.array([0, 0, 1, 2, 3]))
    told = Evaluated(split="eval", rows=5, classes=4, known=0, baselines={}, measures={"round 1": measures})
    assert "5 rows of 4 classes (unseen classes), 2 of them queries with a row of their class to find" in str(told)


def test_baselines_are_the_exact_cosines_of_the_payload(small_run, tmp_path, capsys):
    corpus = Corpus.open(small_run)
    split = corpus.split("eval")
    label = split.class_of(np.arange(split.rows))
    images = np.stack([keras.ops.convert_to_numpy(tf.io.decode_png(row["image"])) for row in corpus.rows("eval")])
    flat = images.reshape(len(images), -1).astype(np.float64)
    expected = retrieval(flat / np.linalg.norm(flat, axis=1, keepdims=True), label)
    found = told(capsys, small_run, "--retrieval_only")["baselines"]["pixels, 8 x 8"]
    assert found["map_at_r"] == pytest.approx(expected["map_at_r"], abs=1e-3)
    assert found["mean_distance"] == pytest.approx(expected["mean_distance"], abs=1e-5)


def test_what_is_worse_than_no_training_is_called_so(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(25), 8)
    vectors = np.eye(32)[labels] + 0.05 * rng.standard_normal((200, 32))
    np.savez(tmp_path / "v.npz", vectors=vectors.astype(np.float32), labels=labels.astype(str))
    run = ["--run_dir", str(tmp_path / "run")]
    assert ingest.main([*run, "--source", f"arrays:{tmp_path}/v.npz"]) == 0
    assert init.main([*run, "--model", "networks:narrow"]) == 0
    capsys.readouterr()
    assert evaluate.main(run) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].startswith("vectors as given  ")
    assert "WORSE THAN WITHOUT TRAINING: round 0 has MAP@R 0." in out and "vectors as given 1.000." in out


def test_texts_stand_beside_their_words_and_characters(tmp_path, capsys):
    lines = [f"the colour {'red green blue'.split()[n % 3]} number {n},c{n % 3}" for n in range(90)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    run = ["--run_dir", str(tmp_path / "run")]
    assert ingest.main([*run, "--source", f"csv:{tmp_path}/t.csv"]) == 0 and init.main(run) == 0
    capsys.readouterr()
    baselines = told(capsys, tmp_path / "run", "--retrieval_only")["baselines"]
    assert set(baselines) == {"TF-IDF of words", "TF-IDF of characters"}
    assert all(found["map_at_r"] > 0.5 for found in baselines.values())


def test_the_best_rounds_checkpoint_is_found_in_best_where_its_own_is_gone(small_run, capsys):
    run = Run(small_run)
    before = told(capsys, small_run, "--retrieval_only")["measures"]["round 0"]
    for target in (run.best_checkpoint, run.round(1).checkpoint):
        copy_checkpoint(run.round(0).checkpoint, target)
    shutil.rmtree(run.round(0).checkpoint.parent)  # somebody made room
    manifests.write(run.best, Best(round=0, validation_map_at_r=0.5))
    assert told(capsys, small_run, "--retrieval_only")["measures"] == {"round 0, best": before}
    assert told(capsys, small_run, "--retrieval_only", "--round", "0")["measures"] == {"round 0": before}
    manifests.write(run.best, Best(round=1, validation_map_at_r=0.5))
    with pytest.raises(InputError, match="round 0 has no checkpoint; the newest is round 1's"):
        evaluate.main(["--run_dir", str(small_run), "--round", "0"])


def test_a_split_too_small_for_a_probe_goes_without(tmp_path, capsys):
    """Half of a, a, a, b is of one class."""
    vectors, labels = np.eye(4, dtype=np.float32), ["a", "a", "a", "b"]
    assert evaluate_embeddings(vectors, labels, retrieval_only=False)["linear_probe"] is None
    np.savez(
        tmp_path / "v.npz", vectors=np.concatenate([vectors] * 2), labels=np.array(labels * 2),
        splits=np.repeat(["train", "eval"], 4),
    )  # fmt: skip
    run = ["--run_dir", str(tmp_path / "run")]
    assert ingest.main([*run, "--source", f"arrays:{tmp_path}/v.npz"]) == 0 and init.main(run) == 0
    capsys.readouterr()
    assert evaluate.main(run) == 0
    _, head, _, measured, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[-1] == "probe" and measured.startswith("round 0 ") and measured.split()[-1] == "-"


def test_a_round_or_a_checkpoint_that_is_not_there_and_a_damaged_split_are_refused(small_run):
    with pytest.raises(InputError, match="round 7 has no checkpoint; the newest is round 0's"):
        evaluate.main(["--run_dir", str(small_run), "--round", "7"])
    [path] = (small_run / "corpus").glob("eval-*.index.npy")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="eval-.*index.npy is not what"):
        evaluate.main(["--run_dir", str(small_run)])
    Run(small_run).round(0).checkpoint.unlink()
    with pytest.raises(InputError, match="has no checkpoint. Make a first one: python -m trainer.init"):
        evaluate.main(["--run_dir", str(small_run)])
