"""What the report says of rounds: known answers, wrong labels planted on purpose, markup that stays text, damage."""

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
from conftest import MARKUP, read_packs

from pipeline import charts, findings, ingest, mine, records, report, rounds, storage, views
from pipeline.findings import Sample
from pipeline.records import InputError
from trainer import train


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


def suspected(run, number=0):
    path = records.round_dir(run, number) / "suspected-labels.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, dialect="excel-tab"))


def make_sample(triplets):
    """A sample of (anchor, positive, negative, d_ap, d_an)."""
    columns = np.array(triplets, np.float64).T
    rows = columns[:3].astype(np.int64)
    kind = (columns[4] <= columns[3]).astype(np.int64)
    return Sample(
        anchor=rows[0], positive=rows[1], negative=rows[2], d_ap=columns[3].astype(np.float32),
        d_an=columns[4].astype(np.float32), kind=kind, scope=kind * 0,
        ids={row: str(row) for row in np.unique(rows).tolist()}, packs=1, rows=len(np.unique(rows)),
    )  # fmt: skip


SMALL = make_sample(  # classes of three rows: 0 to 2, 3 to 5, 6 to 8
    [(0, 1, 3, 0.5, 0.6), (1, 0, 4, 0.5, 0.55), (3, 4, 0, 0.4, 0.3), (2, 0, 7, 0.2, 0.3), (6, 7, 3, 0.1, 0.25)]
)
CLASSES = np.stack([SMALL.anchor // 3, SMALL.negative // 3], axis=1)


def test_confused_pairs_have_known_counts_and_examples():
    pairs = findings.confusions(SMALL, CLASSES, 9, 3)
    assert [(p.a, p.b, p.triplets, p.share) for p in pairs] == [(0, 1, 3, 3 / 4), (0, 2, 1, 1 / 4), (1, 2, 1, 1 / 2)]
    assert pairs[0].examples == [2, 1]  # the smallest d_an first; triplet 0 has rows of triplet 2
    classes, matrix = findings.confusion_matrix(CLASSES, 16)
    known = {(0, 1): 2, (1, 0): 1, (0, 2): 1, (2, 1): 1}
    for (i, a), (j, b) in ((x, y) for x in enumerate(classes) for y in enumerate(classes)):
        assert matrix[i, j] == known.get((a, b), 0)
    assert sorted(findings.confusion_matrix(CLASSES, 2)[0]) == [0, 1]


def test_the_gallery_shows_no_anchor_and_no_pair_of_classes_twice():
    assert sorted(findings.drawn(SMALL, 9, seed=0)) == [0, 1, 2, 3, 4]
    assert sorted(SMALL.anchor[findings.drawn(SMALL, 3, seed=0)]) == sorted(
        set(SMALL.anchor[findings.drawn(SMALL, 3, 0)])
    )
    assert findings.closest(SMALL, CLASSES, 9).tolist() == [2, 3, 4]
    assert findings.closest(SMALL, CLASSES, 1).tolist() == [2]


def test_the_sample_is_what_the_packs_hold(mined):
    manifest, packs = json.loads(records.manifest_path(mined, 0).read_text()), read_packs(mined)
    directory = records.manifest_path(mined, 0).parent
    whole = findings.read_sample(directory, manifest, findings.packs_to_read(manifest))
    assert (whole.packs, whole.rows, len(whole.anchor)) == (manifest["packs"], manifest["rows"], manifest["triplets"])
    for side in ("anchor", "positive", "negative"):
        assert (getattr(whole, side) == np.concatenate([p["row"][p[side]] for p in packs])).all()
    some = findings.read_sample(directory, manifest, 3)
    assert some.packs == 3 and (some.d_an == np.concatenate([p["d_an"] for p in packs[:3]])).all()


def test_what_is_read_has_bounds():
    manifest = {"packs": 10_000, "rows": 1_280_000, "triplets": 2_000_000, "shards": [{"bytes": 1}]}
    assert findings.packs_to_read(manifest) == 10_000 * findings.READ_ROWS // 1_280_000
    assert findings.packs_to_read({**manifest, "shards": [{"bytes": 1 << 40}]}) == 1
    assert findings.packs_to_read({**manifest, "packs": 5, "rows": 600, "triplets": 900}) == 5


def test_counts_of_the_page_are_the_manifests(mined, tmp_path, capsys):
    run = shutil.copytree(mined, tmp_path / "run")
    assert report.main(["--run_dir", str(run)]) == 0
    assert "suspected labels" in capsys.readouterr().out
    manifest = json.loads(records.manifest_path(run, 0).read_text())
    page = Page(records.round_dir(run, 0) / "report.html")
    corpus, pack = manifest["counts"]["corpus"]["semi-hard"], manifest["counts"]["pack"]["semi-hard"]
    assert f"semi-hard {corpus:,} {corpus / manifest['pairs']['corpus']:.0%}" in page.text["counts"]
    assert f"semi-hard {pack:,}" in page.text["counts"]
    assert f"no negative in pack {manifest['skipped']['pack']['no_negative_in_pack']:,}" in page.text["counts"]
    assert f"Triplets {manifest['triplets']:,}" in page.text[""]
    assert f"of {manifest['triplets']:,} triplets of all packs" in page.text["distances"]
    counted = re.findall(r"<title>[\d.-]+ to [\d.-]+: ([\d,]+) semi-hard</title>", page.source)
    assert sum(int(n.replace(",", "")) for n in counted) == 3 * manifest["triplets"]  # three histograms
    assert "Not trained yet" in page.text["training"]
    assert f"round 0 {manifest['triplets']:,}" in Page(run / "index.html").text["rounds"]
    first = page.source
    assert report.main(["--run_dir", str(run), "--round", "0", "--packs", "2"]) == 0
    assert (
        f"triplets of 2 of {manifest['packs']} packs"
        in Page(records.round_dir(run, 0) / "report.html").text["distances"]
    )
    assert report.main(["--run_dir", str(run)]) == 0
    assert Page(records.round_dir(run, 0) / "report.html").source == first


@pytest.mark.parametrize("packs", ["triplets", "spread"])
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
    source = ["--source", f"arrays:{tmp_path / 'digits.npz'}", "--validation_share", "0", "--eval_share", "0"]
    assert ingest.main(["--run_dir", str(run), *source]) == 0
    assert train.main(["--run_dir", str(run), "--online", "--steps", "90"]) == 0
    assert mine.main(["--run_dir", str(run), *(rounds.MINE.split() if packs == "spread" else [])]) == 0
    assert report.main(["--run_dir", str(run)]) == 0

    found, planted = suspected(run), {ids[n]: n for n in wrong}
    copies = {ids[wrong[0]], ids[-1]}
    assert {row["id"] for row in found if row["copy"] == "1"} == copies
    assert found[0]["id"] == ids[wrong[0]]  # of the two that are equal, its neighbours tell which label is wrong
    by_neighbours = [row for row in found if row["neighbours"]]
    hits = [row["id"] in planted for row in by_neighbours]
    assert sum(hits[:10]) >= 8, by_neighbours[:12]
    for row in by_neighbours[:10]:
        assert float(row["d_other"]) < float(row["d_own"]) and 2 * int(row["other"]) > int(row["neighbours"])
    right = [
        row["looks_like"] == str(digits.target[planted[row["id"]]]) for row in by_neighbours if row["id"] in planted
    ]
    assert sum(right) >= 8
    page = Page(records.round_dir(run, 0) / "report.html").text["labels"]
    assert page.index(f"{found[2]['id']} {found[2]['label']} {found[2]['looks_like']}") > page.index(found[0]["id"])
    assert page.count("the same bytes") == 2

    shutil.rmtree(records.round_dir(run, 0) / "embeddings")  # then the anchors alone must do
    assert report.main(["--run_dir", str(run)]) == 0
    by_anchors = [row for row in suspected(run) if row["copy"] == "0"]
    assert findings.UNCHECKED - 2 <= len(by_anchors) <= findings.UNCHECKED and by_anchors[0]["neighbours"] == ""
    if packs == "triplets":  # packs that keep near classes apart say little by themselves
        assert sum(row["id"] in planted for row in by_anchors[:20]) >= 5
    assert "their neighbours were not looked at" in Page(records.round_dir(run, 0) / "report.html").text["labels"]


def test_neighbours_are_those_of_a_full_sort(mined):
    split = records.open_corpus(mined).split("train")
    [directory] = (records.round_dir(mined, 0) / "embeddings").iterdir()
    embeddings = np.concatenate([np.load(path) for path in sorted(directory.glob("*.npy"))])
    rows = np.array([0, 77, split.rows - 1])
    nearest, distance, d_own = findings.neighbours(split, directory, rows)
    for i, row in enumerate(rows):
        expected = 2 - 2 * embeddings @ embeddings[row]
        expected[row] = np.inf
        np.testing.assert_array_equal(distance[i], np.sort(expected)[: findings.NEIGHBOURS])
        np.testing.assert_array_equal(expected[nearest[i]], distance[i])
        lo, hi = split.class_ranges(rows)[i]
        np.testing.assert_array_equal(d_own[i], np.sort(expected[lo:hi])[: findings.NEAR])


def test_markup_in_ids_and_labels_stays_text(marked):
    for path in (records.round_dir(marked, 0) / "report.html", marked / "index.html"):
        page = Page(path)
        assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object")]
        assert all(a["src"].startswith("data:image/") for tag, a in page.tags if tag == "img")
        assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
        addresses = [value for _, a in page.tags for name, value in a.items() if name in ("href", "src")]
        assert not [a for a in addresses if "//" in a and not a.startswith("data:image/")]
    page = Page(records.round_dir(marked, 0) / "report.html")
    assert MARKUP in page.text["triplets"] and MARKUP in page.text["confused"]
    assert MARKUP in suspected(marked)[0]["id"]


def test_a_text_and_a_vector_and_pictures_of_all_sorts_can_be_seen():
    from io import BytesIO
    from types import SimpleNamespace

    from PIL import Image

    def look_at(kind, payload):
        record = records.make_example({"id": [b"i"], "label": [b"l"], "x": payload})
        split = SimpleNamespace(read=lambda rows: [record] * len(rows))
        corpus = SimpleNamespace(features={"x": {"kind": kind}}, split=lambda name: split)
        view = views.look_up(corpus, [5])[5]
        parts = report._templates().get_template("parts.html").module
        return view.drawn, parts.payload(view)

    drawn, shown = look_at("text", ["<b>où</b> \xff".encode() + b"\xff" + b"x" * 500])
    assert drawn["text"].endswith("x …") and "&lt;b&gt;où&lt;/b&gt;" in shown
    drawn, shown = look_at("vector", np.array([1, -2, 0, 0.5], np.float32))
    assert drawn["path"] == "M12.5 50V27.0M37.5 50V96.0M62.5 50V50.0M87.5 50V38.5" and "1, -2, 0, 0.5" in shown
    drawn, _ = look_at("vector", np.zeros(1000, np.float32))
    assert drawn["path"].count("M") == views.STROKES
    rng = np.random.default_rng(0)
    for mode, form in (("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("CMYK", "JPEG")):
        pixels = rng.integers(0, 255, (400, 300, 3), np.uint8)
        image = (
            Image.fromarray(pixels).convert(mode)
            if mode != "I;16"
            else Image.fromarray(pixels[:, :, 0].astype("<u2") << 8)
        )
        buffer = BytesIO()
        image.save(buffer, form)
        drawn, _ = look_at("image", [buffer.getvalue()])
        assert (drawn["width"], drawn["height"]) == (90, views.THUMBNAIL) and drawn["src"].startswith("data:image/webp")
        assert len(drawn["src"]) < 20_000


def test_charts_put_things_where_they_belong():
    chart = charts.histogram({"a": np.array([0.0, 0.1, 0.1]), "b": np.array([0.1])}, "about", {"here": 0.2})
    first, low, high = chart.bars  # one value of a; two more, and one of b upon them
    assert [bar.series for bar in chart.bars] == [0, 0, 1] and low.x == high.x == 50 and first.x == 0
    assert low.height == pytest.approx(2 * high.height, abs=0.02) and high.y + high.height == pytest.approx(
        low.y, abs=0.02
    )
    assert chart.marks[0].at == 100 and chart.x[0].at == 0
    line = charts.lines({"validation": {1: 0.5, 3: 0.7}, "eval": {}}, "about", ".2f")
    assert line.names == ["validation"] and [p[2] for p in line.lines[0].points] == ["round 1: 0.50", "round 3: 0.70"]
    assert line.lines[0].points[0][1] > line.lines[0].points[1][1]  # y grows downwards
    assert [(tick.text, tick.at) for tick in line.x] == [("1", 16.67), ("3", 83.33)]
    assert charts.lines({"eval": {}}, "about", ".2f") is None and charts.columns({}, "about", "") is None
    many = charts.lines({"eval": {n: n / 300 for n in range(300)}}, "about", ".2f")
    assert not many.lines[0].points and len(many.x) < 12


def test_what_is_not_there_or_damaged_is_said(mined, tmp_path):
    run = shutil.copytree(mined, tmp_path / "run")
    call = ["--run_dir", str(run)]
    with pytest.raises(
        InputError, match=r"rounds/0007/triplets/triplets.json is missing.*mined are rounds 0.*pipeline.mine"
    ):
        report.main([*call, "--round", "7"])
    with pytest.raises(InputError, match="--packs must be at least 1"):
        report.main([*call, "--packs", "0"])
    directory = records.manifest_path(run, 0).parent
    [shard] = directory.glob("*.tfrecord")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"{shard.name}: record .* is cut off"):
        report.main(call)
    shard.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(InputError, match=f"{shard.name}: the record at byte .* is corrupt"):
        report.main(call)
    shard.write_bytes(b"")
    with pytest.raises(InputError, match=f"{shard.name} ends after 0 records"):
        report.main(call)
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name} is missing"):
        report.main(call)
    shard.write_bytes(whole)
    (records.round_dir(run, 0) / "evaluation-eval.json").write_text('{"map_at')
    with pytest.raises(InputError, match=r"evaluation-eval.json is no JSON"):
        report.main(call)
    (records.round_dir(run, 0) / "evaluation-eval.json").unlink()
    [array] = (records.round_dir(run, 0) / "embeddings").glob("*/*.npy")
    for content, says in ((array.read_bytes()[:-9], "is no array"), (b"", "is no array")):
        array.write_bytes(content)
        with pytest.raises(InputError, match=f"{array.name} {says}.*the report does without it"):
            report.main(call)
    np.save(array, np.zeros((3, 2), np.float32))
    with pytest.raises(InputError, match=r"has shape \(3, 2\), expected 1258 rows"):
        report.main(call)
    shutil.rmtree(array.parent)
    assert not (records.round_dir(run, 0) / "report.html").exists()
    assert report.main(call) == 0


def test_the_index_takes_numbers_it_has_not_heard_of(mined, tmp_path):
    run = shutil.copytree(mined, tmp_path / "run")
    digest = json.loads(records.manifest_path(run, 0).read_text())["checkpoint_digest"]
    told = {
        "format": "f",
        "checkpoint_digest": digest,
        "opis": 0.125,
        "opis_std": 0.03125,
        "pairs": 1234,
        "by_class": {"a": 1},
        "nothing": None,
    }
    records.write_json(records.round_dir(run, 0) / "evaluation-eval.json", told)
    records.write_json(
        records.round_dir(run, 0) / "evaluation-validation.json", {**told, "checkpoint_digest": "another's"}
    )
    assert report.main(["--run_dir", str(run)]) == 0
    assert Page(run / "index.html").text["quality"].strip().endswith("opis pairs round 0’s eval 0.125 ± 0.031 1,234")


def test_the_report_of_a_run_that_is_on_no_disk(mined):
    run = f"memory://report-{os.getpid()}/run"
    place = storage.location(run)
    for path in (p for p in mined.rglob("*") if p.is_file() and p.name != ".lock"):
        target = place / str(path.relative_to(mined))
        storage.write_atomically(target, functools.partial(shutil.copyfile, path))
    assert report.main(["--run_dir", run]) == 0
    page = (place / "rounds/0000/report.html").read_text()
    assert page.count("data:image/png") > 50 and html.escape(run) in page
    assert (place / "index.html").exists() and (place / "rounds/0000/suspected-labels.tsv").exists()


def test_the_page_of_a_round_of_spread_packs_tells_of_near_classes(tmp_path):
    """Classes in twins that lie close together: packs keep them apart, the page shows them as confused."""
    rng = np.random.default_rng(0)
    point = np.repeat(rng.standard_normal((20, 8)), 2, axis=0) + 0.3 * rng.standard_normal((40, 8))
    label = np.repeat(np.arange(40), 8)
    np.savez(tmp_path / "v.npz", vectors=point[label] + 0.1 * rng.standard_normal((320, 8)), labels=label)
    run, shares = tmp_path / "run", ["--validation_share", "0", "--eval_share", "0"]
    assert ingest.main(["--run_dir", str(run), "--source", f"arrays:{tmp_path / 'v.npz'}", *shares]) == 0
    assert train.main(["--run_dir", str(run), "--init"]) == 0
    assert mine.main(["--run_dir", str(run), *rounds.MINE.split()]) == 0
    assert report.main(["--run_dir", str(run)]) == 0
    page = Page(records.round_dir(run, 0) / "report.html")
    manifest = json.loads(records.manifest_path(run, 0).read_text())
    assert "it is all 320 rows as anchors, each with the 3 nearest rows of other classes" in page.text["confused"]
    split = records.open_corpus(run).split("train")
    pairs = re.findall(r"<h4><span>(\d+)</span> <i>and</i> <span>(\d+)</span></h4>", page.source)
    assert pairs and sum(int(a) // 2 == int(b) // 2 for a, b in pairs) >= 0.8 * len(pairs)
    assert split.rows == 320 and "Over the whole corpus" not in page.text["counts"]
    pack = manifest["counts"]["pack"]["semi-hard"]
    tried = pack + manifest["skipped"]["pack"]["no_negative_in_pack"]
    assert f"of {tried:,} anchor-positive pairs" in page.text[""]
    shutil.rmtree(next((records.round_dir(run, 0) / "embeddings").iterdir()))
    assert report.main(["--run_dir", str(run)]) == 0
    assert "packs keep near ones apart" in Page(records.round_dir(run, 0) / "report.html").text["confused"]
