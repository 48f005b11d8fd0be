"""Ingest, warm-up, mine, train: on texts, images and whole data sets."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from corpora import ingested

from pipeline import mine
from pipeline.files.layout import Run
from trainer import evaluate, init, train, warmup

DATA = Path(__file__).parents[1] / "data"


def loop(run_dir, source):
    """Returns MAP@R on unseen classes of the untrained network, after the warm-up and after a round."""
    assert ingested(run_dir, source).manifest.split_rule.by == "class"
    found = []
    for steps in ([(init,)], [(warmup,)], [(mine,), (train, "--epochs", "2")]):
        for command, *more in steps:
            assert command.main(["--run_dir", str(run_dir), *more]) == 0
        assert evaluate.main(["--run_dir", str(run_dir), "--retrieval_only"]) == 0
        evaluation = Run(run_dir).newest_checkpoint().evaluation("eval")
        found.append(json.loads(evaluation.read_bytes())["measures"]["map_at_r"])
    return found


def test_banking77_end_to_end(tmp_path):
    untrained, _, trained = loop(tmp_path / "texts", f"csv:{DATA / 'banking77.csv'},label=category")
    assert trained > untrained


@pytest.mark.slow
def test_omniglot_end_to_end(tmp_path):
    with zipfile.ZipFile(DATA / "omniglot.zip") as file:
        file.extractall(tmp_path / "omniglot")
    untrained, _, trained = loop(tmp_path / "images", f"images:{tmp_path / 'omniglot'}")
    assert trained > untrained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "source", "least"),
    [("BANKING77", "csv:{}/*.csv,label=category", 0.35), ("OMNIGLOT", "images:{}", 0.5)],
)
def test_whole_data_sets_end_to_end(tmp_path, variable, source, least):
    """BANKING77 names the folder with train.csv and test.csv, OMNIGLOT that of the alphabets or its zip file."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} does not say where the whole data set is")
    place = os.environ[variable]
    if place.endswith(".zip"):
        shutil.unpack_archive(place, tmp_path / "unpacked")
        place = tmp_path / "unpacked"
    untrained, warm, trained = loop(tmp_path / "run", source.format(place))
    assert untrained < warm < trained and trained > least
