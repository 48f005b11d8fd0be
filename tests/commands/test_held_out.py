"""Several sources, test sets of one's own, and what goes out again."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from corpora import png

from pipeline import Corpus, InputError, embed, ingest, mine_corpus, read_packs, records
from pipeline.files.layout import Run
from trainer import evaluate, evaluate_rounds, init
from trainer.measures.retrieval import has_queries, retrieval

ALL = {"validation_share": 0.0, "eval_share": 0.0, "max_rejected": 0.5}


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
    assert corpus.known_classes("eval") == 2
    assert init.main(["--run_dir", str(tmp_path / "run")]) == 0
    assert "(2 of them known)" in str(evaluate_rounds(tmp_path / "run", retrieval_only=True))


def test_sources_of_two_kinds_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na,b\n")
    with pytest.raises(InputError, match="one kind of payload"):
        Corpus.ingest([vectors(tmp_path / "a.npz", range(3), 4), f"csv:{tmp_path}/t.csv"], tmp_path / "run")


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "dev", "eval"), ("train", "test")])
def test_folders_of_splits_are_splits(tmp_path, names):
    for folder in names:
        for label in ("cat", "dog"):
            for number in range(4):
                path = tmp_path / "images" / folder / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png((sum(map(ord, folder + label)) * 7 + number) % 256))
    corpus = Corpus.ingest(f"images:{tmp_path}/images", tmp_path / "run", validation_share=0.0)
    rows = {name: corpus.split(name).rows for name in ("train", "validation", "eval")}
    assert rows == {"train": 8, "validation": 8 * (len(names) == 3), "eval": 8}
    assert corpus.split("train").labels == ["cat", "dog"] == corpus.split("eval").labels
    assert all(row["id"].startswith(names[0]) for row in corpus.rows("train"))


def test_a_class_called_test_is_a_class(tmp_path):
    for label in ("train", "test", "pear"):
        for number in range(4):
            path = tmp_path / "images" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png((sum(map(ord, label)) * 7 + number) % 256))
    corpus = Corpus.ingest(f"images:{tmp_path}/images", tmp_path / "run", validation_share=0.0, eval_share=0.0)
    assert corpus.split("train").labels == ["pear", "test", "train"]


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


def test_a_column_says_the_split_and_another_who_asks(tmp_path, capsys):
    rows = [f"red {n},r,{'test' if n % 3 == 0 else 'train'},{'query' if n % 2 else 'gallery'}" for n in range(24)]
    rows += [f"blue {n},b,{'test' if n % 3 == 0 else 'train'},{'query' if n % 2 else 'gallery'}" for n in range(24)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label,split,asks", *rows, "odd,b,later,query"]) + "\n")
    call = ["--run_dir", str(tmp_path / "run"), "--source", f"csv:{tmp_path}/t.csv,role=asks"]
    assert ingest.main([*call, "--validation_share", "0"]) == 0
    assert "eval as given" in capsys.readouterr().out
    corpus = Corpus.open(tmp_path / "run")
    assert (corpus.split("train").rows, corpus.split("eval").rows, corpus.manifest.rejected) == (32, 16, 1)
    assert "its split is 'later'" in Run(tmp_path / "run").rejected.read_text()
    assert init.main(call[:2]) == 0
    found = evaluate_rounds(tmp_path / "run", retrieval_only=True)
    assert found.measures["round 0"]["queries"] == 8 == found.baselines["TF-IDF of words"]["queries"]


def test_pairs_without_labels_have_a_label_of_their_own(tmp_path):
    more = [{"neg": [f"wrong {n}"]} for n in range(30)]
    pairs = [{"query": f"question {n}?", "pos": [f"answer {n} a", f"answer {n} b"]} | more[n] for n in range(30)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    corpus = Corpus.ingest(f"jsonl:{tmp_path}/t.jsonl", tmp_path / "run", validation_share=0.0, eval_share=0.0)
    rows = list(corpus.rows())
    assert len(rows) == 120 and corpus.manifest.rejected == 0
    assert sorted(row["text"] for row in rows if row["label"] == "question 7?") == [
        "answer 7 a", "answer 7 b", "question 7?"
    ]  # fmt: skip
    (tmp_path / "t.csv").write_text("anchor,positive\na1,p1\na1,p2\na2,p3\n")
    corpus = Corpus.ingest(f"csv:{tmp_path}/t.csv", tmp_path / "csv", validation_share=0.0, eval_share=0.0)
    assert [(row["label"], row["text"]) for row in corpus.rows()] == [
        ("a1", "a1"), ("a1", "p1"), ("a1", "a1"), ("a1", "p2"), ("a2", "a2"), ("a2", "p3")
    ]  # fmt: skip


def test_places_that_two_sources_share_are_no_ids(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        vectors(tmp_path / f"{name}.npz", range(3), 8, seed)
        with np.load(tmp_path / f"{name}.npz") as data:
            np.savez(tmp_path / f"{name}.npz", vectors=data["vectors"], labels=data["labels"])
    corpus = Corpus.ingest(f"arrays:{tmp_path}/a.npz", tmp_path / "run", eval_source=f"arrays:{tmp_path}/b.npz")
    assert corpus.manifest.rejected == 0 and corpus.split("eval").rows == 24


def test_a_test_set_of_which_nothing_is_left_is_refused(tmp_path):
    train = vectors(tmp_path / "a.npz", range(3), 80)
    with np.load(tmp_path / "a.npz") as data:
        np.savez(tmp_path / "b.npz", vectors=data["vectors"][:3], labels=data["labels"][:3], ids=data["ids"][:3])
    with pytest.raises(InputError, match="--eval_source .*: none of its rows is left"):
        Corpus.ingest(train, tmp_path / "run", eval_source=f"arrays:{tmp_path}/b.npz")


def test_a_loose_file_beside_the_classes_leaves_the_splits(tmp_path):
    for folder in ("train", "test"):
        for number in range(8):
            path = tmp_path / "images" / folder / f"c{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(number + 100 * (folder == "test")))
    (tmp_path / "images/train/classes.txt").write_text("c0 c1")
    (tmp_path / "images/README.md").write_text("pictures")
    source = f"images:{tmp_path}/images"
    corpus = Corpus.ingest(source, tmp_path / "run", validation_share=0.0, max_rejected=0.2)
    assert corpus.split("train").labels == ["c0", "c1"] and corpus.split("eval").rows == 8
    assert corpus.manifest.rejected == 2


def test_cells_of_several_lines_in_a_right_file_stay_whole(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for number in range(300):
        lines = [f"{'Thanks, Bob' if rng.random() < 0.3 else 'see you'} {number}" for _ in range(rng.integers(1, 4))]
        rows.append([f"c{number % 5}", "\n".join(lines)])
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["label", "text"], *rows])
    corpus = Corpus.ingest(f"csv:{tmp_path}/t.csv", tmp_path / "run", validation_share=0.0, eval_share=0.0)
    assert sorted([row["label"], row["text"]] for row in corpus.rows()) == sorted(rows)


@pytest.mark.parametrize("how", ["encoding=latin-1", "sep=;"])
def test_pairs_in_files_of_other_kinds(tmp_path, how):
    sep = how[4:] if how.startswith("sep") else ","
    (tmp_path / "t.csv").write_text(f'anchor{sep}positive\nä{sep}p1\n{sep}p2\n"b" x{sep}p3\n', encoding="latin-1")
    source = f"csv:{tmp_path}/t.csv" + ",encoding=latin-1"
    corpus = Corpus.ingest(source, tmp_path / "run", validation_share=0.0, eval_share=0.0, max_rejected=0.9)
    assert [row["text"] for row in corpus.rows() if row["label"] == "ä"] == ["ä", "p1"]
    assert "its anchor is empty" in Run(tmp_path / "run").rejected.read_text()


def test_odd_cells_are_rejected_one_by_one(tmp_path):
    cells = [[1.0, 2.0], {"a": 1}, [10**400], "x"]
    rows = [{"vector": cell, "label": "a"} for cell in cells] + [{"vector": [3.0, n], "label": "b"} for n in range(9)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    corpus = Corpus.ingest(f"jsonl:{tmp_path}/t.jsonl", tmp_path / "run", **ALL)
    assert corpus.manifest.rejected == 3
    (tmp_path / "s.jsonl").write_text('{"text": ["a", "b"], "label": "x"}\n{"text": "c", "label": "x"}\n')
    corpus = Corpus.ingest(f"jsonl:{tmp_path}/s.jsonl", tmp_path / "texts", **ALL)
    assert [row["text"] for row in corpus.rows()] == ["c"]


def test_pairs_of_two_files_of_one_name_stay_apart(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.csv").write_text(f"anchor,positive,negative\na {folder},p {folder},n {folder}\n")
    sources = [f"csv:{tmp_path}/{folder}/t.csv" for folder in ("x", "y")]
    corpus = Corpus.ingest(sources, tmp_path / "run", **ALL)
    assert corpus.manifest.rejected == 0
    assert [(row["label"], row["text"]) for row in corpus.rows()] == [
        ("a x", "a x"), ("a x", "p x"), ("a y", "a y"), ("a y", "p y"), ("n x", "n x"), ("n y", "n y")
    ]  # fmt: skip


def test_a_damaged_corpus_is_no_missing_baseline(tmp_path):
    lines = [f"word{n % 4} number {n},c{n % 4}" for n in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    run_dir = tmp_path / "run"
    Corpus.ingest(f"csv:{tmp_path}/t.csv", run_dir)
    assert init.main(["--run_dir", str(run_dir)]) == 0
    [shard] = (run_dir / "corpus").glob("train-*.tfrecord")
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(InputError, match="train-.*tfrecord is not what"):
        evaluate_rounds(run_dir, retrieval_only=True)


def test_queries_without_a_gallery_are_nothing_to_validate_on(tmp_path):
    rows = [f"red {n},{'rb'[n % 2]},{'train' if n < 40 else 'val'},{'' if n < 40 else 'query'}" for n in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label,split,asks", *rows]) + "\n")
    corpus = Corpus.ingest(f"csv:{tmp_path}/t.csv,role=asks", tmp_path / "run", **ALL)
    assert corpus.split("validation").rows == 20 and not has_queries(corpus, corpus.split("validation"))


def test_there_is_no_best_before_rounds(small_mined, tmp_path):
    with pytest.raises(InputError, match="pipeline.rounds keeps it"):
        embed.main(["--run_dir", str(small_mined), "--round", "best", "--out", str(tmp_path / "e.npz")])
