"""Whether mining pays: what embeddings say of it, against counts over all triplets."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from handmade import write_corpus, write_embeddings, write_round

from pipeline.corpus.corpus import Corpus
from pipeline.files.layout import Run
from pipeline.mining.manifest import read_manifest
from pipeline.mining.mined import Mined
from pipeline.packs.packs import PackOptions
from pipeline.reporting.advice import MARGIN, advise, advised, answer
from pipeline.triplets.rows import to_grid


def advice_on(run_dir, angles, label, packing=PackOptions()):  # noqa: B008  frozen
    """Embeddings on a circle, and a round of one pack of one triplet."""
    points = to_grid(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    write_corpus(run_dir, [f"class {c:02d}" for c in label], points)
    store = write_embeddings(run_dir, points)
    manifest = write_round(run_dir, [[(0, 1, len(label) - 1, 0.1, 0.2)]], packing=packing)
    return advise(store, manifest), points, store


def test_signals_are_shares_of_all_triplets(tmp_path):
    """Classes that overlap; each share within what drawing some of the triplets may be off."""
    label = np.repeat(np.arange(6), 14)
    angles = label + np.random.default_rng(0).normal(0, 0.5, len(label))
    advice, points, _ = advice_on(tmp_path, angles, label, PackOptions(pack_rows=6, fill=2))
    d = 2 - 2 * points @ points.T
    pairs = [(a, p) for a, p in itertools.permutations(range(len(label)), 2) if label[a] == label[p]]
    gaps = np.concatenate([d[a][label != label[a]] - d[a, p] for a, p in pairs])
    np.fill_diagonal(d, np.inf)
    assert advice.signals.active == pytest.approx((gaps < MARGIN).mean(), abs=0.08)
    assert advice.signals.semi_hard == pytest.approx(((gaps > 0) & (gaps < MARGIN)).mean(), abs=0.08)
    assert advice.signals.pure == pytest.approx((label[d.argmin(axis=1)] == label).mean())
    assert (advice.signals.classes_met, advice.signals.packed) == (3 / 6, 3 / 84)
    assert f"clean labels first: {advice.signals.suspected:.0%} of rows lie among another class" in str(advice)


def test_the_answer_follows_the_embeddings(tmp_path):
    """Classes apart: mine, if a pack does not hold most of them and the round trains on what it embedded. Rows under
    wrong labels: clean, but not before anything was learned."""
    label, packing = np.repeat(np.arange(12), 10), PackOptions(pack_rows=4, fill=2)
    apart = label * 2 * np.pi / 12 + np.random.default_rng(0).uniform(-0.01, 0.01, len(label))
    few, _, _ = advice_on(tmp_path / "apart", apart, label, packing)
    assert few.answer == "embed fewer rows" and "packs hold 0.025 times the embedded rows" in str(few)
    many = replace(few, answer=answer(replace(few.signals, packed=1)))
    assert many.answer == "mine" and "a pack holds 16.7% of the classes, 0.0% of random triplets teach" in str(many)
    wide, _, _ = advice_on(tmp_path / "wide", apart, label)
    assert wide.answer == "in-batch is enough" and "a pack holds 100% of the classes" in str(wide)
    wrong = apart.copy()
    wrong[::5] = (label[::5] + 6) * 2 * np.pi / 12  # among the class opposite
    advice, _, _ = advice_on(tmp_path / "wrong", wrong, label, packing)
    assert advice.answer == "clean labels first"
    assert answer(replace(advice.signals, active=1, packed=1)) == "mine"
    assert advice.signals.suspected == pytest.approx(0.2, abs=0.05)


def test_classes_of_one_row_have_no_triplets(tmp_path):
    advice, _, _ = advice_on(tmp_path, np.arange(30) * 0.2, np.arange(30))
    assert (advice.signals.active, advice.signals.pure) == (0, 0)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-4])])
def test_without_whole_embeddings_there_is_none(tmp_path, spoil):
    label = np.repeat(np.arange(3), 10)
    _, _, store = advice_on(tmp_path, label * 2.0, label)
    spoil(store.path(1))
    mined = Mined.of(tmp_path, read_manifest(Run(tmp_path).round(0), Corpus.open(tmp_path)))
    assert advised(mined).advice is None and "does mining pay" not in str(advised(mined))
