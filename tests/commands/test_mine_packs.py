"""Packs that are spread out, by the whole command: every row once, beside far classmates."""

import json
import shutil

import numpy as np
import pytest
from conftest import copied, packs_of

from pipeline import ingest, mine, records, report
from pipeline.corpus.corpus import Corpus
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.network import load_network
from pipeline.errors import InputError
from pipeline.files import manifests
from pipeline.files.layout import Round, Run
from pipeline.mining.manifest import TripletsManifest, open_triplets, store_of
from pipeline.mining.of_corpus import mine_corpus
from pipeline.mining.options import MiningOptions
from pipeline.mining.steps import GroupRows
from pipeline.mining.work import Job
from pipeline.packs.packs import PackOptions
from pipeline.packs.spread import MATCHED
from trainer import init, train

SPREAD = ["--packs", "spread", "--margin", "1.0", "--pack_rows", "32", "--fill", "2", "--pack_pick", "nearest"]
NO_HOLD_OUT = ["--validation_share", "0", "--eval_share", "0"]


@pytest.fixture(scope="module")
def spread(digits, tmp_path_factory):
    """`digits` with round 0 mined into packs that are spread. Not to be changed."""
    run_dir = copied(digits, tmp_path_factory.mktemp("spread"))
    assert mine.main(["--run_dir", str(run_dir), *SPREAD]) == 0
    return run_dir


def manifest_of(run_dir):
    return manifests.read(Run(run_dir).round(0).manifest, TripletsManifest)


def job_of(run_dir, manifest):
    """What the round was mined as."""
    return Job(
        round=Round(run_dir.absolute(), 0), mining=manifest.mining, packing=manifest.packing,
        corpus_fingerprint=manifest.corpus_fingerprint, checkpoint_digest=manifest.checkpoint_digest,
        machine=manifest.embedded_on[0],
    )  # fmt: skip


def truth(run_dir):
    """(labels, distances) of a run's train split, computed apart from the mining job's files."""
    corpus, path = Corpus.open(run_dir), Run(run_dir).round(0).checkpoint
    split = corpus.split("train")
    rows = np.arange(split.rows)
    embedding = Embedder(load_network(path), corpus.feature)(split.read(rows)).astype(np.float64)
    return split.class_of(rows), 2 - 2 * embedding @ embedding.T


def test_each_row_is_written_once_with_far_classmates(spread):
    label, d = truth(spread)
    packs = packs_of(spread)
    rows = np.concatenate([pack["row"] for pack in packs])
    counts = np.bincount(rows, minlength=len(label))
    assert counts.min() == 1 and (counts > 1).sum() <= 10 * (len(label) // 10 // MATCHED + 1)
    assert all(len(np.unique(label[pack["row"]])) > 5 for pack in packs)
    pairs = np.concatenate([pack["row"][np.stack([pack["anchor"], pack["positive"]])] for pack in packs], axis=1)
    classmates = (label[:, None] == label) & ~np.eye(len(label), dtype=bool)
    assert d[tuple(pairs)].mean() > d[classmates].mean() + d[classmates].std() / 4
    manifest = open_triplets(Run(spread).round(0), Corpus.open(spread))
    assert manifest.rows == len(rows) and manifest.packing.packs == "spread"
    assert manifest.skipped["corpus"] == {"anchors_without_positive": 0, "rows_in_packs_of_one_class": 0}


def test_mining_again_changes_nothing_and_other_packs_are_refused(spread, tmp_path, capsys):
    run_dir = copied(spread, tmp_path)
    assert mine.main(["--run_dir", str(run_dir), *SPREAD]) == 0
    said = capsys.readouterr().out
    assert "mined already" in said and "over the whole corpus none" in said
    with pytest.raises(InputError, match="mined already with packs spread, asked for triplets"):
        mine.main(["--run_dir", str(run_dir), "--packs", "triplets", *SPREAD[2:]])
    assert manifest_of(run_dir) == manifest_of(spread)


def test_the_same_packs_for_other_threads(spread, fresh_run):
    assert mine.main(["--run_dir", str(fresh_run), *SPREAD, "--threads", "3"]) == 0
    assert manifest_of(fresh_run).triplet_digest == manifest_of(spread).triplet_digest


def test_an_interrupted_deal_is_made_again(spread, fresh_run):
    """A folder where the deal's file is to be: the first run fails there, after the groups were written."""
    job = job_of(fresh_run, manifest_of(spread))
    (job.work / "pack-rows.npy").mkdir(parents=True)
    with pytest.raises((OSError, RuntimeError), match="pack-rows"):
        mine.main(["--run_dir", str(fresh_run), *SPREAD])
    assert not job.round.manifest.exists() and list((job.work / "groups").iterdir())
    (job.work / "pack-rows.npy").rmdir()
    assert mine.main(["--run_dir", str(fresh_run), *SPREAD]) == 0
    assert manifest_of(fresh_run).triplet_digest == manifest_of(spread).triplet_digest
    assert not job.work.parent.exists()


def test_a_part_is_embedded_packed_trained_on_and_reported_and_the_next_round_takes_another(fresh_run):
    """400 of some 1,250 rows: pieces of ten classes. Packs are those of a corpus of these rows alone."""
    where, parts = ["--run_dir", str(fresh_run)], []
    corpus = Corpus.open(fresh_run)
    split = corpus.split("train")
    for number in (0, 1):
        assert mine.main([*where, *SPREAD, "--anchors", "400"]) == 0
        round = Run(fresh_run).round(number)
        packs = packs_of(fresh_run, number)
        rows = np.concatenate([pack["row"] for pack in packs])
        manifest = open_triplets(round, corpus)
        store = store_of(round, corpus, manifest)
        parts.append(store.split.number_of(np.arange(store.split.rows)))
        assert set(rows) == set(parts[-1]) and abs(len(parts[-1]) - 400) < 2 * MATCHED
        embedding = Embedder(load_network(round.checkpoint), corpus.feature)(split.read(parts[-1]))
        np.testing.assert_array_equal(store.embeddings(np.arange(store.split.rows)), embedding)
        for pack in packs:
            ids = [example["id"][0] for example in split.examples(pack["row"])]
            assert ids == pack["id"]
            own = store.embeddings(store.split.row_of(pack["row"]))
            d_ap = 2 - 2 * (own[pack["anchor"]] * own[pack["positive"]]).sum(axis=1)
            np.testing.assert_allclose(pack["d_ap"], d_ap, atol=1e-6)
        assert report.main([*where, "--round", str(number)]) == 0
        assert train.main([*where, "--memory_rows", "150"]) == 0
    assert not np.intersect1d(*parts).size
    assert records.main(["verify", str(fresh_run)]) == 0


def test_a_part_of_which_nothing_tells_any_more(fresh_run, capsys):
    """Its embeddings, or which rows they are of, removed or spoilt: training with memory names the file, a report does
    without, `records verify` tells."""
    where = ["--run_dir", str(fresh_run)]
    assert mine.main([*where, *SPREAD, "--anchors", "300"]) == 0
    [rows] = Run(fresh_run).round(0).path.glob("embeddings/*/rows.npz")
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-9] + b"spoilt!!!")
    assert records.main(["verify", str(fresh_run)]) == 4
    assert "rows.npz was changed since it was written" in "".join(capsys.readouterr())
    assert mine.main([*where, *SPREAD, "--anchors", "300"]) == 0
    assert "does mining pay" not in capsys.readouterr().out
    rows.unlink()
    assert report.main(where) == 0
    with pytest.raises(InputError, match="rows.npz is missing"):
        train.main([*where, "--memory_rows", "150"])
    rows.write_bytes(whole)
    assert train.main([*where, "--memory_rows", "150"]) == 0


def test_a_part_of_a_corpus_with_one_large_class(tmp_path):
    """Whatever the draw, a part has two classes; of classes of one row alone there is none."""
    rng, run = np.random.default_rng(0), ["--run_dir", str(tmp_path / "run")]
    np.savez(tmp_path / "a.npz", vectors=rng.standard_normal((430, 8)), labels=np.repeat(["many", "few"], [400, 30]))
    assert ingest.main([*run, "--source", f"arrays:{tmp_path / 'a.npz'}", *NO_HOLD_OUT]) == 0
    assert init.main(run) == 0
    for seed in ("0", "1", "2"):
        assert mine.main([*run, *SPREAD, "--anchors", "40", "--seed", seed]) == 0
        labels = {label for pack in packs_of(tmp_path / "run") for label in pack["label"]}
        assert labels == {b"many", b"few"}
        shutil.rmtree(Run(tmp_path / "run").round(0).triplets)
    lone = ["--run_dir", str(tmp_path / "lone")]
    np.savez(tmp_path / "b.npz", vectors=rng.standard_normal((9, 8)), labels=np.array([f"{n}" for n in range(9)]))
    assert ingest.main([*lone, "--source", f"arrays:{tmp_path / 'b.npz'}", *NO_HOLD_OUT]) == 0
    assert init.main(lone) == 0
    with pytest.raises(InputError, match="no class to train on has two rows"):
        mine.main([*lone, *SPREAD, "--anchors", "5"])


def test_the_answer_counts_the_classes_of_the_corpus_not_of_the_part(tmp_path, capsys):
    """Five of 60 classes are embedded, a pack holds two."""
    rng, run = np.random.default_rng(0), ["--run_dir", str(tmp_path / "run")]
    np.savez(tmp_path / "a.npz", vectors=rng.standard_normal((480, 8)), labels=np.repeat(np.arange(60), 8))
    assert ingest.main([*run, "--source", f"arrays:{tmp_path / 'a.npz'}", *NO_HOLD_OUT]) == 0
    assert init.main(run) == 0
    assert mine.main([*run, *SPREAD, "--anchors", "40", "--pack_rows", "4"]) == 0
    assert "mine: a pack holds 3.33% of the classes" in capsys.readouterr().out


def test_a_part_of_embeddings_that_a_user_brings(tmp_path):
    corpus = Corpus.ingest("digits", tmp_path)
    split = corpus.split("train")
    embeddings = np.random.default_rng(0).standard_normal((split.rows, 8))
    mine_corpus(corpus, embeddings=embeddings, packs="spread", pack_rows=32, fill=2, margin=1.0, anchors=300)
    round = Run(tmp_path).round(0)
    store = store_of(round, corpus, open_triplets(round, corpus))
    part = store.split.number_of(np.arange(store.split.rows))
    assert abs(len(part) - 300) < 2 * MATCHED
    expected = embeddings[part] / np.linalg.norm(embeddings[part], axis=1, keepdims=True)
    np.testing.assert_allclose(store.embeddings(np.arange(len(part))), expected, atol=2**-10)


def test_rows_that_no_pack_can_hold_are_counted(tmp_path):
    """Eleven classes of one row, one of three, one of 100: most packs would hold nothing but the last."""
    rng = np.random.default_rng(0)
    labels = np.repeat([*(f"lone {k}" for k in range(11)), "three", "many"], [1] * 11 + [3, 100])
    np.savez(tmp_path / "a.npz", vectors=rng.standard_normal((114, 8)), labels=labels)
    run = ["--run_dir", str(tmp_path / "run")]
    assert ingest.main([*run, "--source", f"arrays:{tmp_path / 'a.npz'}", *NO_HOLD_OUT]) == 0
    assert init.main(run) == 0
    assert mine.main([*run, *SPREAD, "--pack_rows", "8", "--negatives", "semi-hard,hard"]) == 0
    rows = np.concatenate([pack["row"] for pack in packs_of(tmp_path / "run")])
    skipped = manifest_of(tmp_path / "run").skipped["corpus"]
    assert skipped["anchors_without_positive"] == 11
    assert skipped["rows_in_packs_of_one_class"] == 103 - len(np.unique(rows)) > 50
    assert train.main([*run, "--memory_rows", "50"]) == 0


@pytest.mark.filterwarnings("error:invalid value encountered:RuntimeWarning")
def test_a_pack_may_have_no_triplet_of_its_own(fresh_run):
    """With so thin a band few pairs find a negative in their pack; the memory still teaches all rows."""
    flags = [*SPREAD[:2], "--margin", "0.002", "--pack_rows", "8", "--fill", "2"]
    assert mine.main(["--run_dir", str(fresh_run), *flags]) == 0
    assert any(len(pack["anchor"]) == 0 for pack in packs_of(fresh_run))
    assert train.main(["--run_dir", str(fresh_run), "--memory_rows", "500"]) == 0
    told = json.loads(Run(fresh_run).round(0).metrics.read_text())
    assert told["image_passes"] == manifest_of(fresh_run).rows
    assert 0 < told["epochs"][0]["memory_loss"] < 20 and np.isfinite(told["epochs"][0]["loss"])


def test_no_triplet_in_any_pack_is_refused(fresh_run):
    with pytest.raises(InputError, match=r"round 0 has no triplet, out of \d{4} pairs"):
        mine.main(["--run_dir", str(fresh_run), *SPREAD, "--margin", "1e-9"])
    assert not Run(fresh_run).round(0).manifest.exists()


def test_what_does_nothing_is_refused(small, capsys):
    with pytest.raises(InputError, match="packs that are spread take no positives; found 2"):
        mine.main(["--run_dir", str(small), *SPREAD, "--positives", "2"])
    with pytest.raises(SystemExit) as refused:
        mine.main(["--run_dir", str(small), "--packs", "spread", "--pack_rows", "3"])
    assert refused.value.code == 2 and "packs spread does nothing for lone triplets" in capsys.readouterr().err


def test_a_step_that_comes_too_early_is_refused(small):
    job = Job(
        round=Round(small, 0), mining=MiningOptions(), packing=PackOptions(packs="spread"),
        corpus_fingerprint=Corpus.open(small).fingerprint, checkpoint_digest="any",
    )  # fmt: skip
    step = GroupRows(job)
    step.setup()
    with pytest.raises(RuntimeError, match="0 shards of embeddings were written, expected 1"):
        list(step.process(0, 0))
