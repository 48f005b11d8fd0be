"""What the report says of real runs: their numbers, wrong labels planted on purpose, markup that stays text."""

import csv
import functools
import html
import json
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import MARKUP, copied, packs_of

from pipeline import ingest, mine, report
from pipeline.corpus.corpus import Corpus
from pipeline.errors import InputError
from pipeline.files import storage
from pipeline.files.layout import Run
from pipeline.mining.manifest import TripletsManifest, read_manifest
from pipeline.reporting.suspects import UNCHECKED
from pipeline.reporting.templating import share
from trainer import init, warmup

SPREAD = "--packs spread --margin 1.0 --pack_rows 32 --fill 2 --pack_pick nearest".split()
ALL_TRAIN = ["--validation_share", "0", "--eval_share", "0"]


class Page(HTMLParser):
    """A page's tags with their attributes, and its text by section."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self._section, self._hidden = [], {}, "", False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._hidden = tag == "style"
        if tag == "section":
            self._section = dict(attributes)["id"]
        if tag != "wbr":  # a place where a word may be broken
            self.handle_data(" ")

    def handle_endtag(self, tag):
        self.handle_data(" ")

    def handle_data(self, data):
        if not self._hidden:
            self.text[self._section] = re.sub(r"\s+", " ", self.text.get(self._section, "") + data)


def round_page(run_dir):
    return Page(Run(run_dir).round(0).report)


def manifest_of(run_dir) -> TripletsManifest:
    return read_manifest(Run(run_dir).round(0), Corpus.open(run_dir))


def suspected(run_dir):
    with Run(run_dir).round(0).suspects.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, dialect="excel-tab"))


def test_numbers_of_the_page_are_those_of_the_packs(small_mined, tmp_path, capsys):
    run, manifest = copied(small_mined, tmp_path), manifest_of(small_mined)
    assert report.main(["--run_dir", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pages"] == {"0": str(Run(run).round(0).report)}
    assert told["suspected"] == {"0": len(suspected(run))}
    page, packs = round_page(run), packs_of(run)
    by_scope = np.bincount(np.concatenate([pack["scope"] for pack in packs])).tolist()
    assert f"semi-hard {by_scope[0]:,} {by_scope[0] / manifest.pairs:.0%}" in page.text["counts"]
    assert f"semi-hard {by_scope[1]:,}" in page.text["counts"]
    assert f"no negative in pack {manifest.skipped['pack']['no_negative_in_pack']:,}" in page.text["counts"]
    assert f"Triplets {sum(by_scope):,} {by_scope[0]:,} over the whole corpus, {by_scope[1]:,} in" in page.text[""]
    assert f"of {sum(by_scope):,} triplets of all packs" in page.text["distances"]
    counted = re.findall(r"<title>[\d.-]+ to [\d.-]+: ([\d,]+) semi-hard</title>", page.source)
    assert sum(int(n.replace(",", "")) for n in counted) == 3 * sum(by_scope)  # three histograms
    assert f"round 0 {sum(by_scope):,}" in Page(Run(run).index_page).text["rounds"]
    assert report.main(["--run_dir", str(run), "--round", "0", "--packs", "1"]) == 0
    assert f"triplets of 1 of {len(packs)} packs" in round_page(run).text["distances"]


def test_no_pack_cannot_be_asked_for(small_mined, capsys):
    with pytest.raises(SystemExit):
        report.main(["--run_dir", str(small_mined), "--packs", "0"])
    assert "packs must be at least 1; found 0" in capsys.readouterr().err


def test_a_round_that_is_not_mined_has_no_page(small, tmp_path, capsys):
    run = copied(small, tmp_path)
    assert report.main(["--run_dir", str(run)]) == 0
    assert capsys.readouterr().out.split() == ["all", "rounds:", str(Run(run).index_page)]
    assert "0 trained; 0 mined" in Page(Run(run).index_page).text[""]


def test_markup_in_ids_and_labels_stays_text(marked):
    for path in (Run(marked).round(0).report, Run(marked).index_page):
        page = Page(path)
        assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object")]
        assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    page = round_page(marked)
    assert MARKUP in page.text["triplets"] and MARKUP in page.text["confused"] and MARKUP in page.text["labels"]
    assert MARKUP in suspected(marked)[0]["id"]


def test_pages_stand_alone_and_their_links_lead_somewhere(marked):
    for path in (Run(marked).round(0).report, Run(marked).index_page):
        page = Page(path)
        pictures = [a["src"] for tag, a in page.tags if tag == "img"]
        assert all(source.startswith("data:image/") for source in pictures)
        assert "url(" not in page.source and "@import" not in page.source
        links = [a["href"] for _, a in page.tags if "href" in a and a["href"] != "data:,"]
        assert links
        for link in links:
            if link.startswith("#"):
                assert any(a.get("id") == link[1:] for _, a in page.tags)
            else:
                assert (path.parent / link).is_file()


def test_a_trained_round_tells_of_its_training_and_of_quality(marked):
    page, index = round_page(marked), Page(Run(marked).index_page)
    metrics = json.loads(Run(marked).round(0).metrics.read_text())
    after = json.loads(Run(marked).round(1).evaluation("validation").read_text())["measures"]
    assert f"{metrics['steps']} steps, {metrics['image_passes']:,} rows through the network" in page.text["training"]
    assert f"Still active {share(metrics['epochs'][-1]['active_share'])} of the triplets" in page.text[""]
    assert f"MAP@R, validation {after['map_at_r']:.3f} after training; " in page.text[""]
    assert f"{after['recall_at_1']:.3f} {after['map_at_r']:.3f}" in index.text["rounds"]
    assert "linear probe" in index.text["quality"] and "before training" in page.text["training"]


@pytest.mark.parametrize("packs", ["triplets", pytest.param("spread", marks=pytest.mark.slow)])
def test_wrong_labels_planted_on_purpose_come_up_on_top(tmp_path, packs):
    from sklearn.datasets import load_digits

    digits, rng = load_digits(), np.random.default_rng(1)
    label, wrong = digits.target.copy(), rng.choice(len(digits.target), 10, replace=False)
    label[wrong] = (label[wrong] + rng.integers(1, 10, len(wrong))) % 10
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    # One of them a second time, under its right label.
    images, label = np.concatenate([images, images[wrong[:1]]]), np.concatenate([label, digits.target[wrong[:1]]])
    ids = [f"digit {n}" for n in range(len(images))]
    np.savez(tmp_path / "digits.npz", images=images, labels=label.astype(str), ids=np.array(ids))
    run = tmp_path / "run"
    assert ingest.main(["--run_dir", str(run), "--source", f"arrays:{tmp_path / 'digits.npz'}", *ALL_TRAIN]) == 0
    assert warmup.main(["--run_dir", str(run), "--steps", "90"]) == 0
    assert mine.main(["--run_dir", str(run), *(SPREAD if packs == "spread" else [])]) == 0
    assert report.main(["--run_dir", str(run)]) == 0

    found, planted = suspected(run), {ids[n]: n for n in wrong}
    assert {row["id"] for row in found if row["copy"] == "1"} == {ids[wrong[0]], ids[-1]}
    assert found[0]["id"] == ids[wrong[0]]  # of the two that are equal, its neighbours tell which label is wrong
    by_neighbours = [row for row in found if row["neighbours"]]
    assert sum(row["id"] in planted for row in by_neighbours[:10]) >= 8, by_neighbours[:12]
    hits = [row for row in by_neighbours if row["id"] in planted]
    assert sum(row["looks_like"] == str(digits.target[planted[row["id"]]]) for row in hits) >= 8
    labels = round_page(run).text["labels"]
    assert labels.index(f"{found[2]['id']} {found[2]['label']} {found[2]['looks_like']}") > labels.index(found[0]["id"])
    assert labels.count("the same bytes") == 2

    shutil.rmtree(Run(run).round(0).path / "embeddings")  # then the anchors alone must do
    assert report.main(["--run_dir", str(run)]) == 0
    by_anchors = [row for row in suspected(run) if row["copy"] == "0"]
    assert UNCHECKED - 2 <= len(by_anchors) <= UNCHECKED and by_anchors[0]["neighbours"] == ""
    if packs == "triplets":  # packs that keep near classes apart say little by themselves
        assert sum(row["id"] in planted for row in by_anchors[:20]) >= 5
    assert "their neighbours were not looked at" in round_page(run).text["labels"]


def test_of_spread_packs_twins_among_classes_are_confused(tmp_path):
    """Classes in twins that lie close together: packs keep them apart, the page shows them as confused."""
    rng = np.random.default_rng(0)
    point = np.repeat(rng.standard_normal((20, 8)), 2, axis=0) + 0.3 * rng.standard_normal((40, 8))
    label = np.repeat(np.arange(40), 8)
    np.savez(tmp_path / "v.npz", vectors=point[label] + 0.1 * rng.standard_normal((320, 8)), labels=label)
    run = tmp_path / "run"
    assert ingest.main(["--run_dir", str(run), "--source", f"arrays:{tmp_path / 'v.npz'}", *ALL_TRAIN]) == 0
    assert init.main(["--run_dir", str(run)]) == 0
    assert mine.main(["--run_dir", str(run), *SPREAD]) == 0
    assert report.main(["--run_dir", str(run)]) == 0
    page, manifest = round_page(run), manifest_of(run)
    pairs = re.findall(r"<h4><span>(\d+)</span> <i>and</i> <span>(\d+)</span></h4>", page.source)
    assert pairs and sum(int(a) // 2 == int(b) // 2 for a, b in pairs) >= 0.8 * len(pairs)
    tried = manifest.counts["pack"]["semi-hard"] + manifest.skipped["pack"]["no_negative_in_pack"]
    assert f"of {tried:,} anchor-positive pairs" in page.text[""]


def test_a_damaged_embedding_changes_no_page_and_one_that_is_gone_is_done_without(small_mined, tmp_path):
    run = copied(small_mined, tmp_path)
    [array] = (Run(run).round(0).path / "embeddings").glob("*/*.npy")
    array.write_bytes(array.read_bytes()[:-9])
    with pytest.raises(InputError, match=f"{array} is not what was mined with. Restore it, or remove it"):
        report.main(["--run_dir", str(run)])
    array.unlink()
    assert report.main(["--run_dir", str(run)]) == 0
    assert "has no embeddings of the whole train split" in round_page(run).text["labels"]


def test_the_report_of_a_run_that_is_on_no_disk(small_mined):
    run = f"memory://report-{os.getpid()}/run"
    place = storage.location(run)
    for path in (p for p in small_mined.rglob("*") if p.is_file() and not p.name.startswith(".lock")):
        target = place / str(path.relative_to(small_mined))
        storage.write_atomically(target, functools.partial(shutil.copyfile, path))
    assert report.main(["--run_dir", run]) == 0
    page = Run(place).round(0).report.read_text()
    assert page.count("data:image/png") > 50 and html.escape(run) in page
    assert Run(place).index_page.exists() and Run(place).round(0).suspects.exists()
