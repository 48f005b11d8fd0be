"""Which packs are read, what is read of them, and which triplets are shown."""

from dataclasses import replace

import numpy as np
import pytest
from handmade import write_corpus, write_round

from pipeline.errors import InputError
from pipeline.files.layout import Round
from pipeline.reporting.sample import READ_ROWS, Sample, closest, drawn, packs_to_read, read_sample

LABELS = [f"class {n // 3}" for n in range(30)]


def some_packs(count, seed=0):
    """Triplets of random rows, one to five a pack."""
    rng = np.random.default_rng(seed)

    def triplet():
        anchor, negative = rng.choice(10, 2, replace=False) * 3
        d_ap = rng.integers(0, 64) / 64
        return anchor, anchor + rng.integers(1, 3), negative + rng.integers(3), d_ap, d_ap + rng.integers(-9, 9) / 64

    return [[triplet() for _ in range(rng.integers(1, 6))] for _ in range(count)]


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path, LABELS, np.eye(30, dtype=np.float32))


def read(run_dir, manifest, packs, corpus):
    return read_sample(Round(run_dir, 0).triplets, manifest, packs, corpus.split("train"))


def test_all_packs_give_all_triplets_in_their_order(corpus, tmp_path):
    packs = some_packs(20)
    manifest = write_round(tmp_path, packs)
    sample, triplets = read(tmp_path, manifest, 20, corpus), np.array([t for pack in packs for t in pack])
    found = np.stack([sample.anchor, sample.positive, sample.negative, sample.d_ap, sample.d_an], axis=1)
    np.testing.assert_array_equal(found, triplets)
    np.testing.assert_array_equal(sample.gap, triplets[:, 4] - triplets[:, 3])
    np.testing.assert_array_equal(sample.kind, sample.gap <= 0)
    np.testing.assert_array_equal(sample.classes, triplets[:, [0, 2]] // 3)
    assert (sample.packs, sample.rows) == (20, len(np.unique(triplets[:, :3])))


@pytest.mark.parametrize(("wanted", "of_shards"), [(5, [0, 4, 8, 12, 16]), (3, [0, 8, 16]), (1, [0]), (2, [0, 12])])
def test_some_packs_are_the_first_of_shards_that_lie_evenly(corpus, tmp_path, wanted, of_shards):
    packs = some_packs(20)
    sample = read(tmp_path, write_round(tmp_path, packs), wanted, corpus)
    assert sample.packs == wanted
    assert sample.d_an.tolist() == [t[4] for number in of_shards for t in packs[number]]


def test_what_is_read_has_bounds(corpus, tmp_path):
    manifest = write_round(tmp_path, some_packs(5))
    assert packs_to_read(manifest) == 5
    assert packs_to_read(replace(manifest, packs=10_000, rows=1_280_000)) == 10_000 * READ_ROWS // 1_280_000
    assert packs_to_read(replace(manifest, triplets=1 << 40)) == 1
    assert packs_to_read(replace(manifest, shards=[replace(manifest.shards[0], bytes=1 << 40)])) == 1


def test_packs_without_a_triplet_are_passed_over(corpus, tmp_path):
    packs = some_packs(3)
    sample = read(tmp_path, write_round(tmp_path, [[], packs[0], [], packs[1]]), 4, corpus)
    assert sample.d_an.tolist() == [t[4] for pack in packs[:2] for t in pack] and sample.packs == 4


@pytest.mark.parametrize("packs", [[[], []], []])
def test_a_sample_without_a_triplet_is_refused(corpus, tmp_path, packs):
    manifest = write_round(tmp_path, packs)
    with pytest.raises(InputError, match=f"the {len(packs)} packs that were read hold no triplet"):
        read(tmp_path, manifest, packs_to_read(manifest), corpus)


def test_damage_is_named(corpus, tmp_path):
    manifest = write_round(tmp_path, some_packs(4))
    path = Round(tmp_path, 0).triplets / manifest.shards[0].file
    whole = path.read_bytes()
    for content, packs, message in (
        (whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], 2, "the record at byte 0 is corrupt"),
        (whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], 4, "is not what .*triplets.json lists"),
        (whole[:-1], 2, "bytes, triplets.json lists .* Restore it, or remove .*triplets and mine"),
        (whole[:-1], 4, "is not what .*triplets.json lists"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path.name}.*{message}"):
            read(tmp_path, manifest, packs, corpus)
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name} is missing"):
        read(tmp_path, manifest, 4, corpus)


def sample_of(triplets):
    """A sample of (anchor, positive, negative, d_ap, d_an), of classes of three rows."""
    columns = np.array(triplets, np.float64).T
    anchor, positive, negative = columns[:3].astype(np.int64)
    d_ap, d_an = columns[3:].astype(np.float32)
    return Sample(
        anchor=anchor, positive=positive, negative=negative, d_ap=d_ap, d_an=d_an, packs=1, rows=9,
        kind=(d_an <= d_ap).astype(np.int64), classes=np.stack([anchor // 3, negative // 3], axis=1),
    )  # fmt: skip


def test_those_drawn_have_each_anchor_once():
    sample = sample_of([t for pack in some_packs(20) for t in pack])
    anchors = np.unique(sample.anchor)
    for seed in range(5):
        assert sorted(sample.anchor[drawn(sample, 99, seed)]) == anchors.tolist()
        few = sample.anchor[drawn(sample, 3, seed)]
        assert len(set(few.tolist())) == 3
    assert len({tuple(drawn(sample, 3, seed)) for seed in range(5)}) > 1
    np.testing.assert_array_equal(drawn(sample, 3, 0), drawn(sample, 3, 0))


def test_the_closest_have_each_pair_of_classes_once():
    triplets = [t for pack in some_packs(20) for t in pack]
    best = {}
    for number, (anchor, positive, negative, d_ap, d_an) in enumerate(triplets):
        pair = frozenset((anchor // 3, negative // 3))
        best[pair] = min(best.get(pair, (9,)), (d_an - d_ap, anchor, positive, negative, number))
    expected = [number for *_, number in sorted(best.values())]
    assert closest(sample_of(triplets), 99).tolist() == expected
    assert closest(sample_of(triplets), 4).tolist() == expected[:4]
