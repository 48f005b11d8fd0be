"""Several sources, test sets of one's own, and what goes out again."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import Corpus, InputError, embed, ingest, mine_corpus, read_packs, records
from pipeline.files.layout import Run
from trainer import evaluate, evaluate_rounds, init
from trainer.measures.retrieval import retrieval


def vectors(path, classes, each, seed=0, **more):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((30, 8))
    labels = np.repeat(classes, each)
    found = centres[labels] + 0.5 * rng.standard_normal((len(labels), 8))
    ids = np.array([f"{path.stem}-{n:03d}" for n in range(len(labels))])
    np.savez(path, vectors=found.astype(np.float32), labels=labels.astype(str), ids=ids, **more)
    return f"arrays:{path}"


def test_several_sources_and_a_test_set_of_ones_own(tmp_path, capsys):
    run_dir, call = tmp_path / "run", ["--run_dir", str(tmp_path / "run")]
    one, two = vectors(tmp_path / "one.npz", range(4), 12), vectors(tmp_path / "two.npz", range(4, 8), 12, 1)
    test = vectors(tmp_path / "test.npz", range(8), 5, 2)
    sources = ["--source", one, "--source", two, "--eval_source", test]
    assert ingest.main([*call, *sources]) == 0
    assert f"corpus of {one} + {two} + eval {test}: vector 8, eval as given, validation by example" in (
        capsys.readouterr().out
    )
    corpus = Corpus.open(run_dir)
    assert {name: corpus.split(name).rows for name in ("train", "validation", "eval")} == {
        "train": 88, "validation": 8, "eval": 40
    }  # fmt: skip
    assert {row["id"][:4] for row in corpus.rows("eval")} == {"test"}
    assert ingest.main([*call, *sources]) == 0
    assert "already ingested; nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match="already holds"):
        ingest.main([*call, *sources[:2]])
    assert init.main(call) == 0
    assert evaluate.main([*call, "--retrieval_only"]) == 0
    assert "eval split: 40 rows of 8 classes (known classes)" in capsys.readouterr().out


def test_unseen_and_half_known_classes_are_said(tmp_path):
    corpus = Corpus.ingest(
        [vectors(tmp_path / "a.npz", range(6), 10)], tmp_path / "run", validation_share=0.0,
        eval_source=(vectors(tmp_path / "b.npz", range(4, 9), 4, 1),),
    )  # fmt: skip
    assert corpus.manifest.known_classes("eval") == 2
    assert init.main(["--run_dir", str(tmp_path / "run")]) == 0
    assert "(2 of them known)" in str(evaluate_rounds(tmp_path / "run", retrieval_only=True))


def test_sources_of_two_kinds_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na,b\n")
    with pytest.raises(InputError, match="one kind of payload"):
        Corpus.ingest([vectors(tmp_path / "a.npz", range(3), 4), f"csv:{tmp_path}/t.csv"], tmp_path / "run")


def test_leaks_into_a_given_split_are_said(tmp_path, capsys):
    source = vectors(tmp_path / "a.npz", range(3), 8)
    with np.load(tmp_path / "a.npz") as data:
        np.savez(tmp_path / "b.npz", vectors=data["vectors"][:3], labels=data["labels"][:3])
    assert ingest.main(["--run_dir", str(tmp_path / "run"), "--source", source, "--validation_share", "0",
                        "--eval_source", f"arrays:{tmp_path}/b.npz"]) == 0  # fmt: skip
    assert "3 rows of eval have a copy, or a row of their group, in train" in capsys.readouterr().out


def test_queries_rank_the_gallery():
    rng = np.random.default_rng(0)
    label, query = np.arange(40) % 5, rng.random(40) < 0.3
    unit = rng.standard_normal((40, 4)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    hits, precision, asked = 0, 0.0, 0
    for q in np.flatnonzero(query):
        order = sorted(np.flatnonzero(~query), key=lambda n: -float(unit[q].astype(float) @ unit[n].astype(float)))
        good = [label[n] == label[q] for n in order]
        r = sum(good)
        asked, hits = asked + 1, hits + good[0]
        precision += sum(sum(good[: i + 1]) / (i + 1) for i in range(r) if good[i]) / r
    found = retrieval(unit, label, query)
    assert found["queries"] == asked and found["recall_at_1"] == hits / asked
    assert abs(found["map_at_r"] - precision / asked) < 1e-12


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_triplets_go_out_with_ids_and_distances(small_mined, tmp_path, ending, capsys):
    out = tmp_path / f"triplets.{ending}"
    assert records.main(["export", str(small_mined), "--to", str(out)]) == 0
    packs = list(read_packs(small_mined))
    if ending == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        rows = pq.read_table(out).to_pylist()
    assert len(rows) == sum(len(pack["anchor"]) for pack in packs)
    assert f"{len(rows):,} triplets of round 0" in capsys.readouterr().out
    first = packs[0]
    assert rows[0]["anchor_id"] == first["id"][first["anchor"][0]].decode()
    assert rows[0]["d_ap"] == pytest.approx(float(first["d_ap"][0])) and rows[0]["kind"] == "semi-hard"
    with pytest.raises(InputError, match=".jsonl or .parquet"):
        records.main(["export", str(small_mined), "--to", str(tmp_path / "t.csv")])


def test_texts_go_out_as_others_train_on_them(tmp_path):
    lines = [f"word{n % 4} number {n},c{n % 4}" for n in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    corpus = Corpus.ingest(f"csv:{tmp_path}/t.csv", tmp_path / "run")
    codes = np.array([int(row["label"][1]) for row in corpus.rows()])
    mine_corpus(corpus, embeddings=np.eye(4)[codes] + 0.1, margin=4.0, kind={"semi-hard": 1, "hard": 1})
    assert records.main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "t.parquet")]) == 0
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column_names[:3] == ["anchor", "positive", "negative"]
    assert all(row["anchor"].split()[0] == row["positive"].split()[0] != row["negative"].split()[0]
               for row in table.to_pylist())  # fmt: skip


def test_the_best_round_is_what_is_evaluated_and_embedded(small_mined, tmp_path, capsys):
    from conftest import copied

    from pipeline import rounds

    run_dir = copied(small_mined, tmp_path)
    with pytest.raises(InputError, match="pipeline.rounds keeps the best checkpoint"):
        evaluate.main(["--run_dir", str(run_dir), "--round", "best"])
    assert rounds.main(["--run_dir", str(run_dir), "--rounds", "1", "--recipe", "plain"]) == 0
    capsys.readouterr()
    assert evaluate.main(["--run_dir", str(run_dir), "--retrieval_only"]) == 0
    assert ", best" in capsys.readouterr().out
    out = tmp_path / "best.npz"
    assert embed.main(["--run_dir", str(run_dir), "--round", "best", "--out", str(out)]) == 0
    assert str(Run(run_dir).best_checkpoint) in capsys.readouterr().out
    again = Corpus.ingest(f"arrays:{out}", tmp_path / "again")
    assert again.feature.shape == (64,) and sum(split.rows for split in again.manifest.splits.values()) == 300
