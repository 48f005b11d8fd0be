"""Pages of rounds made by hand: whatever of a round is there, they are written and say it."""

import csv
import re

import numpy as np
import pytest
from handmade import write_corpus, write_embeddings, write_round

from pipeline.errors import InputError
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.mining.manifest import Stats
from pipeline.mining.options import MiningOptions
from pipeline.packs.packs import PackOptions
from pipeline.reporting.pages import report
from pipeline.reporting.results import Epoch, Evaluation, Metrics

LABELS = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
TRIPLETS = [(0, 1, 4, 0.5, 0.75), (1, 0, 5, 0.5, 0.25), (4, 5, 0, 0.25, 0.5), (8, 9, 6, 0.125, 0.25)]


@pytest.fixture
def run_dir(tmp_path):
    """Twelve vectors of three classes, and no round."""
    write_corpus(tmp_path, LABELS, np.eye(12, dtype=np.float32))
    return tmp_path


def write_stats(run_dir, number=0):
    manifests.write(Run(run_dir).round(number).stats, Stats(mining_seconds=12.5, finished="today"))


def write_metrics(run_dir, number=0, stopped_by="epochs"):
    epoch = Epoch(loss=0.25, memory_loss=0.0, active_share=0.5, d_ap=0.3, d_an=0.9, triplets=4)
    found = Metrics(
        round=number, device="CPU", replicas=1, margin=0.2, options={"learning_rate": 1e-3, "loss": "triplet"}, steps=7,
        total_steps=7, image_passes=1234, triplets_per_image_pass={}, epochs=[epoch], stopped_by=stopped_by,
        seconds=3.5, checkpoint_digest="by hand", next_checkpoint_digest="next",
    )  # fmt: skip
    manifests.write(Run(run_dir).round(number).metrics, found)


def write_evaluation(run_dir, number, split, **measures):
    found = Evaluation(split=split, corpus_fingerprint="", checkpoint_digest="by hand", measures=measures)
    manifests.write(Run(run_dir).round(number).evaluation(split), found)


def text(path):
    """A page's text, a space between its elements."""
    body = path.read_text(encoding="utf-8").partition("<body>")[2]
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", body.replace("<wbr>", "")))


def pages(run_dir):
    """The text of round 0's page, and of the one over rounds."""
    report(run_dir)
    return text(Run(run_dir).round(0).report), text(Run(run_dir).index_page)


def test_a_round_that_is_mined_and_no_more(run_dir):
    write_round(run_dir, [TRIPLETS], pairs=8)
    round, index = pages(run_dir)
    assert "Triplets 4 4 over the whole corpus, 0 inside packs" in round
    assert "Pairs with a negative 50% of 8 anchor-positive pairs" in round
    assert "Not trained yet: python -m trainer.train" in round
    assert "Held out" not in round and "Still active" not in round
    assert "their neighbours were not looked at" in round
    assert "0 trained; 1 mined" in index and "Held-out quality" not in index
    assert "round 0 4 3 1 50% – – – – – –" in index


def test_a_round_with_everything(run_dir):
    write_round(run_dir, [TRIPLETS], pairs=8)
    write_stats(run_dir)
    write_metrics(run_dir)
    write_evaluation(run_dir, 0, "validation", map_at_r=0.25, recall_at_1=0.5)
    write_evaluation(run_dir, 1, "validation", map_at_r=0.75, recall_at_1=0.875)
    write_embeddings(run_dir, np.eye(12, dtype=np.float32))
    round, index = pages(run_dir)
    assert "MAP@R, validation 0.750 after training; 0.250 before" in round
    assert "Mining 12.5 s training 3.5 s" in round and "Still active 50%" in round
    assert "7 steps, 1,234 rows through the network, learning rate 0.001, loss triplet, on CPU. It ran all" in round
    assert "1 0.2500 50% 0.300 0.900 4" in round
    assert "before training (round 0’s) validation 0.250 0.500" in round
    assert "after training (round 1’s) validation 0.750 0.875" in round
    assert "Suspected labels Rows that are the negative of many anchors" in round
    assert "Best MAP@R, validation 0.750 round 1’s checkpoint" in index
    assert "round 0 4 3 1 50% 50% 0.2500 0.875 0.750 12.5 3.5" in index


def test_a_round_that_is_trained_and_whose_triplets_are_gone(run_dir):
    write_round(run_dir, [TRIPLETS], pairs=8)
    write_metrics(run_dir, 1, stopped_by="min_active")
    write_stats(run_dir, 2)
    round, index = pages(run_dir)
    assert "round 1 – – – – 50% 0.2500 – – – 3.5" in index and "round 2 –" not in index
    assert "→" not in round  # to a round without a page
    write_metrics(run_dir, stopped_by="min_active")
    assert "It ended when few of its triplets were active" in pages(run_dir)[0]


def test_a_measure_without_a_value(run_dir):
    write_round(run_dir, [TRIPLETS], pairs=8)
    write_evaluation(run_dir, 0, "eval", opis=0.125, opis_std=0.03125, queries=1234, map_at_r=None)
    write_evaluation(run_dir, 1, "eval", map_at_r=None, opis=None, opis_std=None)
    round, index = pages(run_dir)
    assert "MAP@R" not in round.partition("Mined triplets")[0]
    assert "checkpoint split opis queries round 0’s eval 0.125 ± 0.031 1,234 round 1’s eval – – Corpus" in index


def test_lone_triplets(run_dir):
    write_round(run_dir, [[t] for t in TRIPLETS], packing=PackOptions(pack_rows=3), pairs=8)
    round, _ = pages(run_dir)
    assert "Out of 4 triplets of all packs" in round
    report(run_dir, packs=1)
    assert "Out of 1 triplets of 1 of 4 packs" in text(Run(run_dir).round(0).report)


def test_one_triplet(run_dir):
    write_round(run_dir, [[(0, 1, 4, 0.5, 0.5)]], packing=PackOptions(pack_rows=3))
    round, index = pages(run_dir)
    assert "Pairs with a negative – of 0 anchor-positive pairs" in round
    assert "0.5 to 0.505: 1 hard" in round and "a and b 1 triplets, 100% of those" in round
    assert "round 0 1 1 –" in index


@pytest.mark.parametrize("embedded", [False, True])
def test_spread_packs(run_dir, embedded):
    packing = PackOptions(packs="spread", pack_rows=32, pack_pick="nearest")
    write_round(run_dir, [TRIPLETS, []], packing=packing, mining=MiningOptions(margin=1.0), no_negative=12)
    if embedded:
        write_embeddings(run_dir, np.eye(12, dtype=np.float32))
    round, _ = pages(run_dir)
    assert "of 16 anchor-positive pairs" in round and "Over the whole corpus" not in round
    assert "no negative in pack 12 75%" in round and "pack pick nearest" in round
    assert ("it is all 12 rows as anchors, each with the 3 nearest rows of other classes" in round) == embedded
    assert ("without embeddings of the whole train split this says little" in round) != embedded


def test_settings_are_told_in_words(run_dir):
    mining = MiningOptions(negatives=(("semi-hard", 3.0), ("hard", 1.0)), pick="nearest")
    write_round(run_dir, [TRIPLETS], mining=mining)
    settings = pages(run_dir)[0].partition("Settings negatives")[2]
    assert settings.startswith(" semi-hard:3,hard:1 pick nearest margin 0.2")
    assert "anchors all packs triplets pack rows 128 fill 4 pack pick nearest metric" in settings


def test_without_a_round_there_is_the_page_over_rounds(run_dir):
    done = report(run_dir)
    assert done.pages == {} and str(done) == f"all rounds: {Run(run_dir).index_page}"
    assert "0 trained; 0 mined" in text(Run(run_dir).index_page)
    with pytest.raises(InputError, match=r"triplets.json is missing: round 7 is not mined, no round is mined"):
        report(run_dir, (7,))
    write_round(run_dir, [TRIPLETS], 2)
    with pytest.raises(InputError, match=r"round 7 is not mined, mined are rounds 2. Mine it: python -m pipeline.mine"):
        report(run_dir, (7,))


def test_rounds_that_follow_are_linked(run_dir):
    for number in range(3):
        write_round(run_dir, [TRIPLETS], number)
    report(run_dir, (0, 1))
    middle = Run(run_dir).round(1).report.read_text()
    assert '<a href="../0000/report.html">← round 0</a><a href="../0002/report.html">round 2 →</a>' in middle
    assert '<a href="../../index.html">' in middle and 'href="suspected-labels.tsv"' in middle
    index = Run(run_dir).index_page.read_text()
    assert re.findall(r'href="(rounds/.*?)"', index) == ["rounds/0000/report.html", "rounds/0001/report.html"]


def test_all_suspects_are_in_the_table_and_the_first_on_the_page(tmp_path):
    labels = [f"c{n // 30:02}" for n in range(120)]
    write_corpus(tmp_path, labels, [b"text %d" % n for n in range(120)], kind="text")
    write_round(tmp_path, [[(n, n + 1, (n + 35) % 120, 0.25, 0.5) for n in range(0, 120, 2) if n % 30 < 28]])
    assert report(tmp_path).suspected == {0: 50}
    with Run(tmp_path).round(0).suspects.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    assert len(rows) == 50 and rows[0]["id"] == f"row-{int(rows[0]['row']):03}"
    assert [rows[0][name] for name in ("copy", "neighbours", "d_own", "anchors")] == ["0", "", "", "1"]
    page = text(Run(tmp_path).round(0).report)
    assert "The first 24 of 50; all are in suspected-labels.tsv" in page
    assert all((f"{row['id']} {row['label']} {row['looks_like']}" in page) == (n < 24) for n, row in enumerate(rows))


def test_no_cell_of_the_table_is_a_formula(tmp_path):
    labels = [f"{sign}c{n}" for sign in "+-=@" for n in range(30)]
    write_corpus(tmp_path, sorted(labels), [b"text %d" % n for n in range(120)], kind="text")
    write_round(tmp_path, [[(n, n + 1, (n + 35) % 120, 0.25, 0.5) for n in range(0, 120, 2) if n % 30 < 28]])
    report(tmp_path)
    with Run(tmp_path).round(0).suspects.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    assert rows and all(row["label"][:2] in ("'+", "'-", "'=", "'@") for row in rows)


def test_a_page_is_the_same_each_time(run_dir):
    write_round(run_dir, [TRIPLETS])
    page = Run(run_dir).round(0).report
    report(run_dir)
    first = page.read_bytes()
    report(run_dir)
    assert page.read_bytes() == first
