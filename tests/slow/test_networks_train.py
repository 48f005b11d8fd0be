"""Networks of all kinds through init, mine and train; and that training makes retrieval better."""

import shutil

import keras
import numpy as np
import pytest
from conftest import BANKING77, copied

from pipeline import ingest, mine
from pipeline.embedding.network import load_network
from pipeline.files.layout import Run
from trainer import evaluate, init, train, warmup
from trainer.measures.evaluation import evaluate_rounds

pytestmark = pytest.mark.slow



def test_training_makes_retrieval_better(mined, tmp_path):
    run = copied(mined, tmp_path)
    assert train.main(["--run_dir", str(run)]) == 0
    found = evaluate_rounds(run, (0, 1), retrieval_only=True).measures
    assert found["round 1"]["map_at_r"] > found["round 0"]["map_at_r"] + 0.1


def test_vectors(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(24), 10)
    centres = rng.standard_normal((24, 12))
    np.savez(tmp_path / "v.npz", vectors=centres[labels] + rng.standard_normal((240, 12)), labels=labels)
    run = ["--run_dir", str(tmp_path / "run")]
    assert ingest.main([*run, "--source", f"arrays:{tmp_path / 'v.npz'}"]) == 0
    assert warmup.main([*run, "--steps", "20"]) == 0
    assert mine.main([*run, "--margin", "0.5", "--pack_rows", "3"]) == 0
    assert train.main(run) == 0
    assert evaluate.main([*run, "--round", "0", "1"]) == 0


@pytest.mark.parametrize("model", [[], ["--model", "networks:vectorising"]])
def test_texts(tmp_path, model):
    run = ["--run_dir", str(tmp_path / "run")]
    assert ingest.main([*run, "--source", f"csv:{BANKING77},label=category"]) == 0
    assert init.main([*run, *model]) == 0
    assert mine.main([*run, "--negatives", "semi-hard,hard"]) == 0
    assert train.main([*run, "--loss", "contrastive"]) == 0
    before, after = (load_network(Run(tmp_path / "run").round(number).checkpoint).model for number in (0, 1))
    assert before.layers[1].get_vocabulary() == after.layers[1].get_vocabulary()
    assert np.abs(after.get_weights()[0] - before.get_weights()[0]).max() > 0


def test_texts_without_spaces_are_learned(tmp_path):
    """Three topics, each with three words among words that all have, in an order of chance and without spaces."""
    rng, rows = np.random.default_rng(0), ["text,label"]
    topics = {"退款": ["退款", "金额", "返还"], "物流": ["快递", "包裹", "送达"], "登录": ["密码", "账号", "登录"]}
    common = ["今天", "昨天", "请问", "怎么", "还没有", "一直", "为什么", "帮我"]
    for label, words in topics.items():
        for _ in range(60):
            rows.append("".join(rng.permutation([*rng.choice(words, 2), *rng.choice(common, 5)])) + f",{label}")
    (tmp_path / "texts.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    run_dir = tmp_path / "run"
    assert ingest.main(["--run_dir", str(run_dir), "--source", f"csv:{tmp_path / 'texts.csv'}"]) == 0
    assert warmup.main(["--run_dir", str(run_dir), "--steps", "60", "--margin", "1"]) == 0
    found = evaluate_rounds(run_dir, (0,), retrieval_only=True).measures
    assert found["round 0"]["recall_at_1"] > 0.9


def test_keras_applications_with_weights_from_a_local_file(digits, tmp_path, monkeypatch):
    keras.utils.set_random_seed(3)
    path = tmp_path / "mobilenet.weights.h5"
    base = keras.applications.MobileNetV3Small(input_shape=(32, 32, 3), include_top=False, pooling="avg", weights=None)
    base.save_weights(path)
    monkeypatch.setenv("MOBILENET_WEIGHTS", str(path))
    run = copied(digits, tmp_path)
    shutil.rmtree(run / "rounds")
    assert init.main(["--run_dir", str(run), "--model", "networks:mobilenet"]) == 0
    found = load_network(Run(run).round(0).checkpoint).model
    np.testing.assert_array_equal(found.get_layer("conv").kernel, base.get_layer("conv").kernel)
    assert mine.main(["--run_dir", str(run), "--anchors", "100", "--negatives", "hard"]) == 0
    assert train.main(["--run_dir", str(run)]) == 0
