"""Packs that are spread out: far classmates together, one of each part of the corpus, every row once."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.packs.spread import CHUNK, MATCHED, Groups, class_means, deal, draw_part, group_rows, order_classes
from pipeline.triplets.rows import Block, to_grid
from pipeline.triplets.rule import Rule


def some_classes(seed, sizes, dim=5):
    """(Block, labels) of classes of these sizes, of rows around a point of each class."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(sizes)), sizes)
    vectors = rng.standard_normal((len(sizes), dim))[label] + rng.standard_normal((len(label), dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Block(row=np.arange(len(label)), embedding=to_grid(vectors.astype(np.float32))), label


@given(
    seed=st.integers(0, 1000), sizes=st.lists(st.integers(1, 90), min_size=1, max_size=6), fill=st.integers(2, 5),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_the_farthest_of_what_is_left_make_a_group(seed, sizes, fill):
    block, label = some_classes(seed, sizes)
    s = block.embedding.astype(np.float64) @ block.embedding.T
    groups = group_rows(Rule(seed=seed), block, label, fill)
    assert set(groups.row) == set(np.flatnonzero(np.array(sizes)[label] > 1))
    left = set(groups.row.tolist())
    again = 0
    for number, name in enumerate(groups.label):
        members = groups.row[groups.starts[number] : groups.starts[number + 1]].tolist()
        assert set(label[members]) == {name}
        assert len(set(members)) == len(members) == min(fill, sizes[name])
        if sizes[name] < 2 * MATCHED:  # one part
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
    parts = [max(1, size // max(MATCHED, fill)) for size in sizes]
    assert not left and again <= sum(parts) * (fill - 1)


def parts_of(seed, sizes, most, rounds, fill=2):
    first_rows = np.concatenate([[0], np.cumsum(sizes)])
    return [draw_part(Rule(seed=seed, round=n), first_rows, most, fill) for n in range(rounds)]


@given(
    seed=st.integers(0, 1000), sizes=st.lists(st.integers(2, 63), min_size=2, max_size=30), most=st.integers(126, 900),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_rounds_take_one_part_after_the_other(seed, sizes, most):
    """Every row comes once before any comes again."""
    parts = parts_of(seed, sizes, min(most, sum(sizes)), 5)
    assert np.ptp(np.bincount(np.concatenate(parts), minlength=sum(sizes))) <= 1


@given(
    seed=st.integers(0, 1000), sizes=st.lists(st.integers(1, 200), min_size=2, max_size=30), most=st.integers(1, 900),
    fill=st.integers(2, 50),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_a_part_is_of_two_classes_and_whole_pieces(seed, sizes, most, fill):
    label, least = np.repeat(np.arange(len(sizes)), sizes), max(MATCHED, fill)
    for part in parts_of(seed, sizes, min(most, sum(sizes)), 3, fill):
        assert (np.diff(part) > 0).all()
        drawn = np.bincount(label[part], minlength=len(sizes))
        assert np.count_nonzero(drawn) >= min(2, sum(size > 1 for size in sizes))
        if np.count_nonzero(drawn) > 2:
            assert len(part) < most + 2 * least
        for n, size in zip(drawn.tolist(), sizes, strict=True):
            assert n in (0, size) if size < 2 * least else n == 0 or n >= least
            assert n == 0 or size > 1


def test_copies_of_one_row_are_no_group():
    block, label = some_classes(0, [4, 2, 3])
    block = replace(block, content=np.array([0, 1, 2, 2, 4, 4, 6, 6, 6]))
    groups = group_rows(Rule(), block, label, 2)
    assert set(groups.row) == {0, 1, 2, 3}


def test_a_large_class_is_grouped_in_parts():
    block, label = some_classes(0, [300, 40])
    groups = group_rows(Rule(), block, label, 2)
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
    groups = group_rows(rule, block, label, fill)
    means = class_means(block.embedding, label)
    place = order_classes(means, pack_rows // fill)
    assert sorted(place) == list(range(len(sizes)))
    rows, starts = deal(rule, groups, place[groups.label], pack_rows, fill)
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
    block = Block(row=np.arange(640), embedding=to_grid(embedding.astype(np.float32)))
    place = order_classes(np.stack([np.cos(angle), np.sin(angle)], axis=1), 16)
    neighbours = np.argsort(place)
    for part in np.split(neighbours, 16):  # halves of halves along the ring
        assert np.ptp(np.sort(np.stack([np.cos(angle), np.sin(angle)], axis=1)[part], axis=0), axis=0).max() < 0.8
    groups = group_rows(Rule(), block, label, 2)
    rows, starts = deal(Rule(), groups, place[groups.label], 32, 2)
    assert (np.diff(starts) == 32).all() and len(starts) == 21
    part_of = np.empty(160, int)
    part_of[neighbours] = np.arange(160) // 10
    for pack in np.split(rows, starts[1:-1]):
        assert sorted(part_of[np.unique(label[pack])]) == list(range(16))


def test_more_means_than_are_held_at_once_may_lie_on_a_disk(tmp_path):
    means = np.random.default_rng(0).integers(-50, 50, (CHUNK + 5000, 3)).astype(np.float64)
    np.save(tmp_path / "means.npy", means)
    place = order_classes(np.load(tmp_path / "means.npy", mmap_mode="r"), 4)
    cut = [np.arange(len(means))]
    for _ in range(2):
        halves = []
        for part in cut:
            part = part[np.argsort(means[part, np.argmax(np.ptp(means[part], axis=0))], kind="stable")]
            halves += [part[: len(part) // 2], part[len(part) // 2 :]]
        cut = halves
    assert (np.argsort(place) == np.concatenate(cut)).all()


@given(
    seed=st.integers(0, 1000), sizes=st.lists(st.integers(1, 90), min_size=2, max_size=12), cut=st.integers(1, 11),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_groups_and_means_do_not_depend_on_which_classes_are_looked_at_together(seed, sizes, cut):
    block, label = some_classes(seed, sizes)
    first_row = sum(sizes[: min(cut, len(sizes) - 1)])
    parts = [slice(0, first_row), slice(first_row, len(label))]
    whole = group_rows(Rule(), block, label, 2)
    found = Groups.concatenate([group_rows(Rule(), block.take(part), label[part], 2) for part in parts])
    for name, column in vars(whole).items():
        np.testing.assert_array_equal(vars(found)[name], column)
    means = [class_means(block.embedding[part], label[part]) for part in parts]
    np.testing.assert_array_equal(np.concatenate(means), class_means(block.embedding, label))
    exact = [block.embedding[label == name].astype(np.float64).mean(axis=0) for name in range(len(sizes))]
    np.testing.assert_allclose(class_means(block.embedding, label), exact, rtol=0, atol=1e-12)
