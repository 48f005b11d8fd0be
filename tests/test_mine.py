"""Mining end to end: every triplet that the command writes, against the definitions."""

import functools
import json

import numpy as np
import pytest
from conftest import command, read_packs
from scipy.stats import kstest

from pipeline import mine, packs, records, selection
from pipeline.embed import Embedder
from pipeline.records import InputError
from pipeline.selection import KINDS


@functools.cache
def truth(run_dir):
    """(labels, distances) of a run's train split, computed apart from the mining job's files."""
    corpus = records.open_corpus(run_dir)
    split = corpus.split("train")
    rows = np.arange(split.rows)
    embedding = Embedder(records.checkpoint_path(run_dir, 0), corpus)(split.read(rows)).astype(np.float64)
    return split.class_of(rows), 2 - 2 * embedding @ embedding.T


def qualify(kind, margin, label, d, a, p, among):
    """The rows among `among` that are negatives of that kind of (a, p)."""
    other = label[among] != label[a]
    band = (d[a, among] > d[a, p]) & (d[a, among] < d[a, p] + margin) if kind == "semi-hard" else d[a, among] <= d[a, p]
    return among[other & band]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--pick", "nearest", "--positives", "3", "--margin", "0.1"],
        ["--negatives", "semi-hard:1,hard:3", "--pick", "random", "--seed", "5", "--margin", "0.05"],
        ["--negatives", "hard", "--pick", "nearest", "--pack_rows", "3"],
        ["--anchors", "300", "--class_pool", "6", "--positives", "2"],
    ],
    ids=" ".join,
)
def test_every_triplet_obeys_the_definitions(fresh_run, arguments):
    assert mine.main(["--run_dir", str(fresh_run), *arguments]) == 0
    corpus = records.open_corpus(fresh_run)
    manifest = records.open_triplets(fresh_run, 0, corpus)
    options, margin = manifest["options"], manifest["margin"]
    kinds = list(options["shares"])
    label, d = truth(fresh_run)
    split = corpus.split("train")

    pooled = np.arange(len(label))
    written = read_packs(fresh_run)
    if options["class_pool"]:
        classes = np.unique(label[np.concatenate([pack["row"] for pack in written])])
        assert len(classes) <= options["class_pool"]
        pool = mine.Pool(mine.Job(run_dir=fresh_run, round=0, rule=selection.Rule(seed=options["seed"]), class_pool=6))
        assert set(classes) <= set(pool.classes.tolist())
        pooled = np.flatnonzero(np.isin(label, pool.classes))

    corpus_pairs, seen, places = set(), [], []
    for pack in written:
        rows = pack["row"]
        assert len(set(rows)) == len(rows) <= max(options["pack_rows"], 3)
        np.testing.assert_array_equal([split.labels[c].encode() for c in label[rows]], pack["label"])
        assert split.read(rows) == [
            records.make_example({"id": [i], "label": [c], "image": [image]})
            for i, c, image in zip(pack["id"], pack["label"], pack["image"], strict=True)
        ]
        anchor, positive, negative = (rows[pack[side]] for side in ("anchor", "positive", "negative"))
        np.testing.assert_array_equal(pack["d_ap"], d[anchor, positive].astype(np.float32))
        np.testing.assert_array_equal(pack["d_an"], d[anchor, negative].astype(np.float32))
        pairs = set(zip(anchor.tolist(), positive.tolist(), strict=True))
        assert len(pairs) == len(anchor), "a pair has at most one triplet in a pack"
        for a, p, n, kind, scope in zip(anchor, positive, negative, pack["kind"], pack["scope"], strict=True):
            assert a != p and label[a] == label[p] != label[n]
            among = pooled if records.SCOPES[scope] == "corpus" else np.sort(rows)
            allowed = qualify(KINDS[kind], margin, label, d, a, p, among)
            assert n in allowed
            if options["pick"] == "nearest":
                assert n == min(allowed, key=lambda row: (d[a, row], row))
            elif len(allowed) > 1:
                places.append((np.searchsorted(allowed, n) + 0.5) / len(allowed))
            if records.SCOPES[scope] == "corpus":
                corpus_pairs.add((int(a), int(p)))
                seen.append(a)
        if options["pack_rows"] > 3:  # every pair left out has no negative in the pack
            left = {(a, p) for a in rows for p in rows if a != p and label[a] == label[p]} - pairs
            for a, p in left:
                assert not any(len(qualify(kind, margin, label, d, a, p, np.sort(rows))) for kind in kinds)
    if options["pick"] == "random":
        assert kstest(places[:4000], "uniform").pvalue > 1e-4

    # No anchor is missing without a counted reason.
    anchors = min(options["anchors"] or len(pooled), len(pooled))
    skipped = manifest["skipped"]["corpus"]
    assert manifest["pairs"]["corpus"] == anchors * options["positives"]  # every digit has hundreds of rows
    assert len(corpus_pairs) == len(seen) == sum(manifest["counts"]["corpus"].values())
    assert len(seen) + sum(skipped.values()) == anchors * options["positives"]
    assert skipped["anchors_without_positive"] == 0
    if not options["anchors"]:
        for a in set(range(len(label))) - set(seen):
            # With all its positives tried or one of them: at least one drawn pair must have nothing.
            assert any(
                not any(len(qualify(kind, margin, label, d, a, p, pooled)) for kind in kinds)
                for p in np.flatnonzero(label == label[a])
                if p != a
            )
    assert manifest["triplets"] == sum(len(pack["anchor"]) for pack in written)
    assert manifest["rows"] == sum(len(pack["row"]) for pack in written)


def test_packs_are_filled_and_full(mined):
    label, _ = truth(mined)
    sizes = []
    for pack in read_packs(mined):
        rows = pack["row"]
        _, count = np.unique(label[rows], return_counts=True)
        assert count.min() >= packs.FILL
        sizes.append(len(rows))
        of_corpus = pack["scope"] == records.SCOPES.index("corpus")
        assert of_corpus.any()
    assert min(sizes[:-1]) > 100


def test_mining_again_says_so_and_changes_nothing(mined, capsys):
    before = {path: path.stat().st_mtime_ns for path in mined.rglob("*") if path.is_file()}
    assert mine.main(["--run_dir", str(mined)]) == 0
    assert "mined already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in mined.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="mined already with margin 0.2, asked for 0.3"):
        mine.main(["--run_dir", str(mined), "--margin", "0.3"])


def test_same_triplets_for_other_threads_and_items(mined, fresh_run, monkeypatch):
    monkeypatch.setattr(mine, "ITEM_BLOCKS", 2)
    monkeypatch.setattr(mine, "CACHE_BYTES", 1)
    assert mine.main(["--run_dir", str(fresh_run), "--threads", "3"]) == 0
    digests = [json.loads(records.manifest_path(run, 0).read_text())["triplet_digest"] for run in (mined, fresh_run)]
    assert digests[0] == digests[1]


def test_nearest_split_over_column_lists_is_the_same(fresh_run, tmp_path, monkeypatch, digits):
    import shutil

    other = shutil.copytree(digits, tmp_path / "other")
    arguments = ["--pick", "nearest", "--negatives", "semi-hard,hard"]
    assert mine.main(["--run_dir", str(fresh_run), *arguments]) == 0
    monkeypatch.setattr(selection, "COLUMN_BLOCK", 100)
    monkeypatch.setattr(mine, "ITEM_COLUMNS", 3)
    assert mine.main(["--run_dir", str(other), *arguments]) == 0
    digests = [json.loads(records.manifest_path(run, 0).read_text())["triplet_digest"] for run in (other, fresh_run)]
    assert digests[0] == digests[1]


def test_the_command_speaks_plainly(fresh_run):
    done = command("pipeline.mine", "--run_dir", fresh_run)
    assert done.returncode == 0, done.stderr
    assert "over the whole corpus 1,258 semi-hard" in done.stdout
    assert "next: python -m trainer.train" in done.stdout
    noise = [
        line for line in done.stderr.splitlines() if line.split(":")[0] not in ("embed", "columns", "scan", "write")
    ]
    assert not noise


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--margin", "0"], "margin must be above 0"),
        (["--negatives", "easy"], "kinds out of semi-hard, hard"),
        (["--negatives", "hard:x"], "hard:x"),
        (["--pack_rows", "5"], "pack_rows must be 3"),
        (["--anchors", "0"], "anchors must be at least 1"),
        (["--class_pool", "1"], "a negative needs two"),
        (["--posetives", "2"], "unknown option --posetives"),
    ],
)
def test_wrong_options_are_refused(fresh_run, arguments, message):
    with pytest.raises(InputError, match=message):
        mine.main(["--run_dir", str(fresh_run), *arguments])


def test_a_worker_error_reaches_the_user_in_one_line(fresh_run):
    corpus = fresh_run / "corpus" / "train-00000-of-00001.tfrecord"
    data = bytearray(corpus.read_bytes())
    data[5000] ^= 1
    corpus.write_bytes(data)
    done = command("pipeline.mine", "--run_dir", fresh_run)
    assert done.returncode == 4
    assert done.stderr.startswith("error: ") and "train-00000-of-00001.tfrecord" in done.stderr
    assert "Traceback" not in done.stderr
