"""The parts of the benchmarks that could be wrong without showing it."""

import json

import numpy as np
import oracle
import pytest

from benchmarks import large, peers, publish, selection
from benchmarks.quality import answers, arms, cells, controls, page, tuning
from benchmarks.runs import IN_PROCESS
from benchmarks.table import Row, installed
from pipeline.corpus.corpus import Corpus
from pipeline.files.layout import Run
from pipeline.mining.job import mine
from pipeline.mining.manifest import open_triplets, read_packs
from pipeline.packs.write import SCOPES
from pipeline.reporting.advice import Signals
from trainer.loop import train_newest
from trainer.recipe import read_recipe


@pytest.mark.parametrize(
    ("value", "at_least", "verdict"),
    [(1.9, True, "SHORT"), (2.0, True, "PASS"), (2.0, False, "PASS"), (2.1, False, "SHORT")],
)
def test_bounds_go_both_ways(value, at_least, verdict):
    assert Row(what="x", value=value, bound=2.0, at_least=at_least).verdict == verdict
    assert Row(what="x", value=value, at_least=at_least).verdict == "-"


def test_ingest_is_measured_beside_reading_and_writing_once():
    for kind in ("csv", "vectors"):
        ratio, ours, theirs, _ = large.over_once(kind, rows=300, repeat=1)
        assert ratio.value == pytest.approx(ours.value / theirs.value) and ratio.bound == 3
    [peak] = large.memory(rows=300, classes=30)
    assert 0.2 < peak.value < peak.bound == 2


def test_marginal_cost_is_a_difference_over_a_difference_of_the_fastest():
    turns = [
        [({"nearest": mined}, {"forward": forward, "nearest": scan}) for mined, forward, scan in sizes]
        for sizes in ([(20.0, 10.0, 1.0), (35.0, 20.0, 3.0)], [(21.0, 9.0, 2.0), (32.0, 18.0, 4.0)])
    ]
    assert selection.marginal_cost(turns, "nearest").value == pytest.approx((32 - 20) / (18 - 9 + 3 - 1))


def test_every_pair_lists_each_ordered_pair_once():
    label = np.array([0, 0, 0, 1, 2, 2])
    pairs = list(zip(*peers.every_pair(label), strict=True))
    assert sorted(pairs) == [(a, p) for a in range(6) for p in range(6) if a != p and label[a] == label[p]]
    anchor, positive = peers.one_pair(np.array([0, 0, 1, 1]))
    assert positive.tolist() == [1, 0, 3, 2]


def test_triplets_are_judged_by_the_definitions():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((60, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    label = np.arange(60) // 6
    triplets = rng.integers(0, 60, (500, 3))
    found = peers.judged(triplets, vectors, label)
    d = oracle.distance(vectors)
    d_ap, d_an = d[triplets[:, 0], triplets[:, 1]], d[triplets[:, 0], triplets[:, 2]]
    other = label[triplets[:, 0]] != label[triplets[:, 2]]
    assert found["same_label"] == pytest.approx(1 - other.mean())
    assert found["valid"] == pytest.approx((other & (d_an < d_ap + peers.MARGIN)).mean(), abs=0.003)
    assert found["hard"] == pytest.approx((other & (d_an <= d_ap)).mean(), abs=0.003)


@pytest.mark.parametrize("even", [False, True])
def test_the_control_has_no_corpus_triplets_and_trains(fresh_run, even):
    recipe = read_recipe("best")
    before = mine(fresh_run, recipe.mining, recipe.packing, IN_PROCESS)
    controls.random_packs(fresh_run, 0, seed=0, even=even)
    after = open_triplets(Run(fresh_run).round(0), Corpus.open(fresh_run))
    assert abs(after.rows - before.rows) <= 32 and after.triplet_digest != before.triplet_digest
    found = list(read_packs(fresh_run))
    assert sum(len(pack["anchor"]) for pack in found) == after.triplets > 0
    rows = np.concatenate([pack["row"] for pack in found])
    assert len(rows) == after.rows and len(found) == after.packs
    often = np.bincount(rows)
    assert (often.min(), often.mean() < 1.02) == (1, True) if even else often.max() > 2
    for pack in found:
        assert set(pack["scope"]) == {SCOPES.index("pack")}
        label = np.array(pack["label"])
        assert (label[pack["anchor"]] == label[pack["positive"]]).all()
        assert (label[pack["anchor"]] != label[pack["negative"]]).all()
    assert train_newest(fresh_run, recipe.train).metrics


def found(arm, map_at_r, *, settings=None, split=3, budget=1.0, on="eval", warmup=None, corpus="omniglot"):
    cell = cells.Cell(
        corpus=corpus, arm=arm, budget=budget, split=split, settings=settings or {}, warmup=warmup, on=on
    )
    return cells.Found(
        cell=cell, map_at_r=map_at_r, recall_at_1=0.5, passes=1, forwarded=0, cost=1.0, seconds=1.0, cpu_seconds=1.0,
        peak_mb=1.0, code="", date="", machine="",
    )  # fmt: skip


def test_tuning_descends_one_setting_after_the_other_and_ours_after_in_batch():
    """What is wanted next is measured with a made-up score that knows the best of each setting."""
    best = {
        "learning_rate": 0.01, "margin": 0.5, "batch_rows": 64, "warmup": 0.25, "rounds": 2, "temperature": 0.15,
    }  # fmt: skip
    for arm, needs in (("semi-hard", ["semi-hard"]), ("packs-even", ["semi-hard", "packs"])):
        kept, seen = {}, []
        while (answer := tuning.settle("omniglot", arm, kept))[0] is None:
            assert answer[1]
            for cell in answer[1]:
                assert (cell.on, cell.split) == ("validation", tuning.SPLIT)
                score = sum(best[name] == value for name, value in cell.settings.items())
                one = found(
                    cell.arm, score, settings=cell.settings, split=cell.split, on=cell.on, warmup=cell.warmup
                )
                assert one.cell == cell
                kept[one.cell.key()] = one
                seen.append(cell.arm)
        chosen = answer[0]
        assert chosen == {name: best[name] for name in chosen} and list(dict.fromkeys(seen)) == needs
        rates = 3  # beside the first
        assert all(seen.count(name) == arms.tried(arms.ARMS[name].grid) + rates for name in needs)


def test_no_opponent_is_tuned_less_than_ours():
    ours = max(arms.tried(arm.grid) for arm in [*arms.OURS.values(), arms.ARMS["picked"]])
    assert min(arms.tried(arm.grid) for arm in arms.OPPONENTS.values()) >= ours


def test_mining_is_paid_for_out_of_the_budget():
    """Spread packs: of the rows of a round, once, however often they are trained on. A scan: of all rows."""
    for rounds, budget, expected in ((2, 30_000, 1), (1, 30_000, 3), (4, 10_000, 1)):
        warmup, of_round, epochs = arms.OURS["packs"].split({"rounds": rounds, "warmup": 0.25}, budget, rows=9000)
        assert epochs == expected and of_round / epochs <= 9001
        assert warmup + rounds * of_round * (1 + arms.FORWARD / epochs) == pytest.approx(budget)
        assert warmup == pytest.approx(rounds * of_round / 3)
    warmup, of_round, epochs = arms.OURS["plain"].split({"rounds": 1, "warmup": 0.5}, 9000, rows=9000)
    assert (warmup, of_round, epochs) == (pytest.approx(3000), pytest.approx(3000), 1)
    warmup, of_round, epochs = arms.ARMS["picked"].split({"rounds": 4, "warmup": 0.25}, 9000, rows=9000)
    assert warmup + 4 * of_round == pytest.approx(9000) and epochs == 1, "mining is free there, as its name says"
    assert arms.OPPONENTS["large"].options({"batch_rows": 512}, 30_000).steps == 59


def test_a_cell_is_run_once_and_kept(fresh_run, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "STORED", tmp_path / "stored")
    options = {"learning_rate": 0.001, "margin": 1.0}
    mine_too = options | {"rounds": 1, "warmup": 0.5, "memory_rows": 100}
    for arm, settings, warmup in (("batch-hard", options, None), ("packs", mine_too, options)):
        cell = cells.Cell(corpus="digits", arm=arm, budget=1.0, split=1, settings=settings, warmup=warmup)
        assert cells.missing([cell]) == [cell]
        one = cells.run(cell, fresh_run)
        rows = Corpus.open(fresh_run).split("train").rows
        assert (one.signals is None) == (arm != "packs")
        assert abs(one.forwarded - (0.43 * rows if arm == "packs" else 0)) < 64 and abs(one.cost - rows) < 200
        cells.keep(one)
        assert cells.missing([cell]) == [] and cells.stored("digits")[cell.key()] == one
    assert not Run(fresh_run).round(0).manifest.exists()


def test_the_page_compares_with_the_best_opponent_split_by_split(tmp_path, monkeypatch):
    kept = [found("n-pair", 0.5 + split / 100, split=split) for split in (3, 4, 5)]
    kept += [found("semi-hard", 0.4, split=split) for split in (3, 4, 5)]
    kept += [found("packs", 0.6, split=split) for split in (3, 4)] + [found("n-pair", 0.9, on="validation", split=0)]
    kept += [found("semi-hard", 0.9, split=3, settings={"margin": 0.2})]  # of a shorter grid
    kept = {one.cell.key(): one for one in kept}
    monkeypatch.setattr(tuning, "settle", lambda corpus, arm, kept: ({}, []))
    assert page.best_opponent(kept, 1.0) == "n-pair" and page.best_opponent(kept, 3.0) is None
    assert page.gain(kept, "packs", "n-pair", 1.0) == pytest.approx([0.07, 0.06])
    assert page.deviation(kept, "n-pair", 1.0) == pytest.approx(0.01)
    text = tmp_path / "page.md"
    text.write_text(f"before {page.BEGIN} old {page.END} after")
    monkeypatch.setattr(page, "PAGE", text)
    page.write({"omniglot": kept}, [1.0, 3.0])
    assert "| in-batch, N-pair | **0.540 ± 0.010** | 0.500 |" in text.read_text() and "old" not in text.read_text()
    assert text.read_text().endswith(" after")


def test_an_answer_is_judged_by_a_bound_that_the_other_corpora_give():
    def case(corpus, gain, *met):
        signals = [Signals(active=0, semi_hard=0, pure=1, suspected=0, classes_met=m, packed=1) for m in met]
        return answers.Case(corpus=corpus, budget=1.0, gain=gain, signals=tuple(signals))

    alike = [case("a", 0.1, 0.03, 0.01), case("a", -0.1, 0.08), case("b", 0.1, 0.02), case("b", -0.1, 0.09)]
    assert answers.judged(alike) == 1
    wrong = case("c", -0.1, 0.025)  # without a the others are answered as well up to .0225, and a's .03 is not
    assert answers.judged([*alike, wrong]) == pytest.approx((1 / 4 + 1 / 2 + 2 / 3) / 2)
    assert np.isnan(answers.judged([case("a", 0.1, 0.03), case("b", 0.1, 0.3)]))
    assert np.isnan(answers.judged([case("a", 0.1, 0.03), case("a", -0.1, 0.3)]))


def test_the_published_section_is_made_of_the_json(tmp_path, monkeypatch):
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{publish.BEGIN}\nold\n{publish.END}\nafter\n")
    (tmp_path / "results").mkdir()
    docs = tmp_path / "docs"
    for name, value in (("PAGE", page), ("HERE", tmp_path), ("DOCS", docs)):
        monkeypatch.setattr(publish, name, value)
    row = {"what": "MAP@R, a minus b", "value": 0.0123, "bound": 0.02, "note": "", "at_least": True, "verdict": "SHORT"}
    result = {
        "rows": [row], "date": "2026-01-02", "cores": 2, "machine": "machine",
        "versions": {"numpy": "1"},
    }  # fmt: skip
    (tmp_path / "results" / "encoders.json").write_text(json.dumps(result))
    assert publish.main() == 0
    text = page.read_text()
    assert "| MAP@R, a minus b | +0.012 | >= 0.02 | SHORT |" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "2026-01-02, 2 cores" in text
    assert (docs / "encoders.json").exists()
    assert publish.main() == 0 and page.read_text() == text


def test_versions_are_of_what_is_installed():
    assert set(installed("numpy", "no-such-package")) == {"numpy"}
