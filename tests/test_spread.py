"""Packs that are spread out: far classmates together, one of each part of the corpus, every row once."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import read_packs
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mine import digest_of, truth

from pipeline import ingest, mine, records, selection, spread
from pipeline.records import InputError
from pipeline.selection import Block, Rule
from trainer import train

SPREAD = ["--packs", "spread", "--margin", "1.0", "--pack_rows", "32", "--fill", "2", "--pack_pick", "nearest"]


def some_classes(seed, sizes, dim=5):
    """(Block, labels) of classes of these sizes, of rows around a point of each class."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(sizes)), sizes)
    vectors = rng.standard_normal((len(sizes), dim))[label] + rng.standard_normal((len(label), dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Block(row=np.arange(len(label)), embedding=selection.to_grid(vectors.astype(np.float32))), label


@given(
    seed=st.integers(0, 1000), sizes=st.lists(st.integers(1, 90), min_size=1, max_size=6), fill=st.integers(2, 5),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_the_farthest_of_what_is_left_make_a_group(seed, sizes, fill):
    block, label = some_classes(seed, sizes)
    s = block.embedding.astype(np.float64) @ block.embedding.T
    groups = spread.group_rows(Rule(seed=seed), block, label, fill)
    assert set(groups.row) == set(np.flatnonzero(np.array(sizes)[label] > 1))
    left = set(groups.row.tolist())
    again = 0
    for number, name in enumerate(groups.label):
        members = groups.row[groups.starts[number] : groups.starts[number + 1]].tolist()
        assert set(label[members]) == {name}
        assert len(set(members)) == len(members) == min(fill, sizes[name])
        if sizes[name] < 2 * spread.MATCHED:  # one part
            free = sorted(row for row in left if label[row] == name)
            if len(free) > 1:
                pairs = [s[a, b] for a in free for b in free if a < b]
                assert s[members[0], members[1]] == min(pairs)
            for k in range(min(2, len(free)), len(members)):
                rest = set(free) - set(members[:k]) or set(np.flatnonzero(label == name)) - set(members[:k])
                nearest = {row: s[row, members[:k]].max() for row in rest}
                assert nearest[members[k]] == min(nearest.values())
        again += len(set(members) - left)
        left -= set(members)
    parts = [max(1, size // max(spread.MATCHED, fill)) for size in sizes]
    assert not left and again <= sum(parts) * (fill - 1)


def test_copies_of_one_row_are_no_group():
    block, label = some_classes(0, [4, 2, 3])
    block = replace(block, content=np.array([0, 1, 2, 2, 4, 4, 6, 6, 6]))
    groups = spread.group_rows(Rule(), block, label, 2)
    assert set(groups.row) == {0, 1, 2, 3}


def test_a_large_class_is_grouped_in_parts():
    block, label = some_classes(0, [300, 40])
    groups = spread.group_rows(Rule(), block, label, 2)
    s = block.embedding @ block.embedding.T
    of_pairs = s[groups.row[groups.starts[:-1]], groups.row[groups.starts[:-1] + 1]]
    assert of_pairs[groups.label == 0].mean() < s[:300, :300].mean() - 0.1
    assert of_pairs[groups.label == 0].min() > s[:300, :300].min(), "the farthest of 300 are not in one part"


@given(
    seed=st.integers(0, 1000), sizes=st.lists(st.integers(1, 60), min_size=1, max_size=30), fill=st.integers(2, 4),
    pack_rows=st.sampled_from([8, 9, 16, 32]),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_every_row_is_dealt_once(seed, sizes, fill, pack_rows):
    block, label = some_classes(seed, sizes)
    rule = Rule(seed=seed)
    groups = spread.group_rows(rule, block, label, fill)
    means = np.stack([block.embedding[label == name].mean(axis=0) for name in range(len(sizes))])
    place = spread.order_classes(means, pack_rows // fill)
    assert sorted(place) == list(range(len(sizes)))
    rows, starts = spread.deal(rule, groups, place[groups.label], pack_rows, fill)
    count = np.zeros(len(label), int)
    for first, last in zip(starts[:-1], starts[1:], strict=True):
        here = rows[first:last]
        assert len(set(here)) == len(here) <= pack_rows
        assert len(set(label[here])) > 1
        count[here] += 1
    once, expected = (np.bincount(numbers, minlength=len(label)) for numbers in (rows, groups.row))
    assert (once == count).all() and (once <= expected).all()
    packs = -(-len(groups.label) // (pack_rows // fill))
    if len(starts) - 1 == packs:  # none was of one class
        assert set(rows) == set(groups.row)


def test_near_classes_are_neighbours_and_far_ones_share_packs():
    """Classes on a ring: a pack has one of each sixteenth of it, or a neighbour's."""
    angle = np.random.default_rng(0).permutation(160) * 2 * np.pi / 160  # no class beside its neighbours
    embedding = np.repeat(np.stack([np.cos(angle), np.sin(angle)], axis=1), 4, axis=0)
    label = np.repeat(np.arange(160), 4)
    block = Block(row=np.arange(640), embedding=selection.to_grid(embedding.astype(np.float32)))
    place = spread.order_classes(np.stack([np.cos(angle), np.sin(angle)], axis=1), 16)
    neighbours = np.argsort(place)
    for part in np.split(neighbours, 16):  # halves of halves along the ring
        assert np.ptp(np.sort(np.stack([np.cos(angle), np.sin(angle)], axis=1)[part], axis=0), axis=0).max() < 0.8
    groups = spread.group_rows(Rule(), block, label, 2)
    rows, starts = spread.deal(Rule(), groups, place[groups.label], 32, 2)
    assert (np.diff(starts) == 32).all() and len(starts) == 21
    part_of = np.empty(160, int)
    part_of[neighbours] = np.arange(160) // 10
    for pack in np.split(rows, starts[1:-1]):
        assert sorted(part_of[np.unique(label[pack])]) == list(range(16))


def test_the_command_writes_each_row_once_with_far_classmates(fresh_run, capsys):
    assert mine.main(["--run_dir", str(fresh_run), *SPREAD]) == 0
    assert "over the whole corpus none" in capsys.readouterr().out
    label, d = truth(fresh_run)
    packs = read_packs(fresh_run)
    rows = np.concatenate([pack["row"] for pack in packs])
    counts = np.bincount(rows, minlength=len(label))
    assert counts.min() == 1 and (counts > 1).sum() <= 10 * (len(label) // 10 // spread.MATCHED + 1)
    assert all(len(np.unique(label[pack["row"]])) > 5 for pack in packs)
    pairs = np.concatenate([pack["row"][np.stack([pack["anchor"], pack["positive"]])] for pack in packs], axis=1)
    classmates = (label[:, None] == label) & ~np.eye(len(label), dtype=bool)
    assert d[tuple(pairs)].mean() > d[classmates].mean() + d[classmates].std() / 4
    manifest = records.open_triplets(fresh_run, 0, records.open_corpus(fresh_run))
    assert manifest["rows"] == len(rows) and manifest["options"]["packs"] == "spread"
    assert manifest["skipped"]["corpus"] == {"anchors_without_positive": 0, "rows_in_packs_of_one_class": 0}
    assert mine.main(["--run_dir", str(fresh_run), *SPREAD]) == 0
    assert "mined already" in capsys.readouterr().out
    with pytest.raises(InputError, match="mined already with packs spread, asked for triplets"):
        mine.main(["--run_dir", str(fresh_run), "--packs", "triplets", *SPREAD[2:]])


def test_the_same_packs_however_the_work_is_cut(fresh_run, digits, tmp_path, monkeypatch):
    other = shutil.copytree(digits, tmp_path / "other")
    assert mine.main(["--run_dir", str(fresh_run), *SPREAD]) == 0
    monkeypatch.setattr(mine, "GROUP_ROWS", 100)
    assert mine.main(["--run_dir", str(other), *SPREAD, "--threads", "3"]) == 0
    assert digest_of(other) == digest_of(fresh_run)


def test_an_interrupted_deal_is_made_again(fresh_run, digits, tmp_path, monkeypatch):
    other = shutil.copytree(digits, tmp_path / "other")
    assert mine.main(["--run_dir", str(other), *SPREAD]) == 0
    deal = spread.deal

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(spread, "deal", full)
    with pytest.raises(OSError, match="No space left"):
        mine.main(["--run_dir", str(fresh_run), *SPREAD])
    monkeypatch.setattr(spread, "deal", deal)
    assert mine.main(["--run_dir", str(fresh_run), *SPREAD]) == 0
    assert digest_of(fresh_run) == digest_of(other)
    assert not (fresh_run / "rounds" / "0000" / "work").exists()


def test_fewer_rows_and_classes(fresh_run):
    assert mine.main(["--run_dir", str(fresh_run), *SPREAD, "--anchors", "200", "--class_pool", "4"]) == 0
    label, _ = truth(fresh_run)
    rows = np.concatenate([pack["row"] for pack in read_packs(fresh_run)])
    assert 200 - 32 < len(rows) <= 200 and len(np.unique(label[rows])) == 4


def test_rows_that_no_pack_can_hold_are_counted(tmp_path):
    """Eleven classes of one row, one of three, one of 100: most packs would hold nothing but the last."""
    rng = np.random.default_rng(0)
    labels = np.repeat([*(f"lone {k}" for k in range(11)), "three", "many"], [1] * 11 + [3, 100])
    np.savez(tmp_path / "a.npz", vectors=rng.standard_normal((114, 8)), labels=labels)
    run = tmp_path / "run"
    shares = ["--validation_share", "0", "--eval_share", "0"]
    assert ingest.main(["--run_dir", str(run), "--source", f"arrays:{tmp_path / 'a.npz'}", *shares]) == 0
    assert train.main(["--run_dir", str(run), "--init"]) == 0
    assert mine.main(["--run_dir", str(run), *SPREAD, "--pack_rows", "8", "--negatives", "semi-hard,hard"]) == 0
    manifest = json.loads(records.manifest_path(run, 0).read_text())
    rows = np.concatenate([pack["row"] for pack in read_packs(run)])
    skipped = manifest["skipped"]["corpus"]
    assert skipped["anchors_without_positive"] == 11
    assert skipped["rows_in_packs_of_one_class"] == 103 - len(np.unique(rows)) > 50
    assert train.main(["--run_dir", str(run), "--stored_rows", "50"]) == 0


@pytest.mark.filterwarnings("error:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("jit", [[], pytest.param(["--jit"], marks=pytest.mark.slow)], ids=["", "jit"])
def test_a_pack_may_have_no_triplet_of_its_own(fresh_run, jit):
    """With so thin a band few pairs find a negative in their pack; stored rows still teach all rows."""
    flags = [*SPREAD[:2], "--margin", "0.002", "--pack_rows", "8", "--fill", "2"]
    assert mine.main(["--run_dir", str(fresh_run), *flags]) == 0
    assert any(len(pack["anchor"]) == 0 for pack in read_packs(fresh_run))
    assert train.main(["--run_dir", str(fresh_run), "--stored_rows", "500", *jit]) == 0
    told = json.loads((fresh_run / "rounds/0000/train/metrics.json").read_text())
    assert told["image_passes"] == json.loads(records.manifest_path(fresh_run, 0).read_text())["rows"]
    assert 0 < told["epochs"][0]["stored_rows_loss"] < 20 and np.isfinite(told["epochs"][0]["loss"])


def test_no_triplet_in_any_pack_is_refused(fresh_run):
    with pytest.raises(InputError, match=r"round 0 has no triplet, out of \d{4} pairs"):
        mine.main(["--run_dir", str(fresh_run), *SPREAD, "--margin", "1e-9"])
    assert not records.manifest_path(fresh_run, 0).exists()


def test_what_does_nothing_is_refused(fresh_run):
    with pytest.raises(InputError, match="takes no --positives; found 2"):
        mine.main(["--run_dir", str(fresh_run), *SPREAD, "--positives", "2"])
    with pytest.raises(InputError, match="leave --pick out"):
        mine.main(["--run_dir", str(fresh_run), *SPREAD, "--pick", "random"])
    with pytest.raises(InputError, match="--packs does nothing for lone triplets"):
        mine.main(["--run_dir", str(fresh_run), "--packs", "spread", "--pack_rows", "3"])


def test_a_step_that_comes_too_early_is_refused(mined):
    corpus = records.open_corpus(mined)
    digest = json.loads(records.manifest_path(mined, 0).read_text())["checkpoint_digest"]
    step = mine.GroupRows(
        mine.Job(
            run_dir=mined, round=0, rule=Rule(), packs="spread", corpus_fingerprint=corpus.fingerprint,
            checkpoint_digest=digest,
        )
    )  # fmt: skip
    step.setup()
    with pytest.raises(RuntimeError, match="0 corpus shards were embedded, expected 1"):
        list(step.process(0, 0))
