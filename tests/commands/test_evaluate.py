"""How good checkpoints are, by the command."""

import json

import numpy as np
import pytest
from conftest import copied

from pipeline.corpus.corpus import Corpus
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.network import checkpoint_digest, load_checkpoint
from pipeline.errors import InputError
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.reporting.results import Evaluation
from trainer import evaluate, warmup
from trainer.measures.retrieval import retrieval


def told(capsys, run_dir, *arguments):
    """What the command prints as JSON."""
    assert evaluate.main(["--run_dir", str(run_dir), "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_measures_are_those_of_the_splits_embeddings_and_stay_beside_the_round(small_run, capsys):
    corpus, round = Corpus.open(small_run), Run(small_run).round(0)
    model, split = load_checkpoint(round.checkpoint), corpus.split("eval")
    found = told(capsys, small_run, "--nmi")
    expected = retrieval(Embedder(model, corpus.feature, "").split(split), split.class_of(np.arange(split.rows)))
    measures = found["measures"]["round 0"]
    assert expected.items() <= measures.items() and 0 <= measures["nmi"] <= 1 and 0 <= measures["linear_probe"] <= 1
    assert (found["split"], found["rows"], found["classes"]) == ("eval", split.rows, len(split.labels))
    kept = manifests.read(round.evaluation("eval"), Evaluation)
    assert kept.measures == measures and kept.checkpoint_digest == checkpoint_digest(model)


def test_a_warm_up_makes_retrieval_better_and_pixels_stand_beside_it(small, tmp_path, capsys):
    run_dir = copied(small, tmp_path)
    arguments = ["--retrieval_only", "--split", "validation"]
    before = told(capsys, run_dir, *arguments)["measures"]["round 0"]["map_at_r"]
    assert warmup.main(["--run_dir", str(run_dir), "--steps", "25"]) == 0
    capsys.readouterr()
    assert evaluate.main(["--run_dir", str(run_dir), "--pixels", *arguments]) == 0
    head, columns, pixels, after = capsys.readouterr().out.splitlines()
    assert head.startswith("validation split: 30 rows of 10 classes (known classes)")
    assert columns.split() == ["R@1", "R@5", "R@10", "R-prec", "MAP@R", "mean", "d"]
    assert pixels.startswith("payload itself") and after.startswith("round 0")
    assert float(after.split()[6]) > before + 0.05


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
