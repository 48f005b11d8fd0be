"""Packs that are written and read back are what was given, however much is held at a time."""

import itertools

import numpy as np
import oracle
import pytest
from blocks import grid_vectors
from handmade import write_corpus, write_embeddings

from pipeline.files import manifests, storage, tfrecords
from pipeline.packs.fill import assemble, hash_order
from pipeline.packs.packs import PackOptions, Packs
from pipeline.packs.payload import Payload
from pipeline.packs.write import SCOPES, write_packs
from pipeline.triplets.arrays import mine_triplets
from pipeline.triplets.rows import Triplets
from pipeline.triplets.rule import KINDS, Rule
from pipeline.triplets.within import select_within

ROWS = 90
LABELS = [f"class {row // 9}" for row in range(ROWS)]
GROUPS = [None if row % 5 == 0 else f"g{row % 23}" for row in range(ROWS)]
RULE = Rule(shares=(("semi-hard", 1.0), ("hard", 1.0)), margin=0.4, positives=2)
EVERY_CHUNK = [1, 2000, 10_000, 64 << 20]  # one pack at a time, some, more, all


def payload_of(kind):
    """Ten rows are copies; some end in NUL bytes, as camera files padded to a block do; a text may be empty."""
    rng = np.random.default_rng(0)
    if kind == "vector":
        vectors = rng.standard_normal((ROWS, 5)).astype(np.float32)
        vectors[40:50] = vectors[:10]
        return vectors
    payload = [rng.bytes(int(size)) + bytes(row % 3) for row, size in enumerate(rng.integers(1, 300, ROWS))]
    if kind == "text":
        payload = [f"Zeile {row}: größer\n".encode() * (row % 4) + bytes(row % 2) for row in range(ROWS)]
    payload[40:50] = payload[:10]
    return payload


@pytest.fixture(scope="module", params=["image", "text", "vector"])
def written_by_hand(request, tmp_path_factory):
    """(kind and payload, EmbeddingStore) of a corpus with copies and groups, in nine shards."""
    run_dir, payload = tmp_path_factory.mktemp(request.param), payload_of(request.param)
    write_corpus(run_dir, LABELS, payload, kind=request.param, groups=GROUPS)
    return (request.param, payload), write_embeddings(run_dir, grid_vectors(np.random.default_rng(1), ROWS, 8))


@pytest.fixture
def store(tmp_path):
    """Of a corpus of texts without groups."""
    write_corpus(tmp_path, LABELS, [b"text %d" % row for row in range(ROWS)], kind="text")
    return write_embeddings(tmp_path, grid_vectors(np.random.default_rng(1), ROWS, 8))


def packs_of(store, **options):
    """Packs of the triplets of a rule, as shard 3."""
    rows = np.arange(ROWS)
    kinds, rest = dict(RULE.shares), {"margin": RULE.margin, "positives": RULE.positives}
    found = mine_triplets(store.embeddings(rows), store.split.class_of(rows), kind=kinds, **rest)
    found = found.take(hash_order(RULE, found))
    own, other = store.split.class_ranges(found.anchor), store.split.class_ranges(found.negative)
    return assemble(RULE, PackOptions(**options), 3, found, own, other)


def read(path):
    return list(map(tfrecords.parse_example, tfrecords.read_records(path)))


def values(kind, payload, rows):
    """A feature of these rows, as it is in a pack."""
    return payload[rows].ravel().tolist() if kind == "vector" else [payload[row] for row in rows]


@pytest.mark.parametrize("chunk_bytes", EVERY_CHUNK)
def test_packs_are_read_back_as_they_were_given(written_by_hand, tmp_path, chunk_bytes):
    (kind, payload), store = written_by_hand
    packs, path = packs_of(store, pack_rows=16), tmp_path / "t.tfrecord"
    assert len(packs) > 20
    shard, counts = write_packs(path, RULE, packs, False, store, Payload(store.split, 5000), chunk_bytes)
    found = read(path)
    columns, ends, left_out = select_within(
        RULE, store.block(packs.rows), store.split.class_of(packs.rows), packs.starts, packs.triplets,
        packs.triplet_starts, packs.names,
    )  # fmt: skip
    assert len(found) == len(packs) == shard.records
    for n, pack in enumerate(found):
        rows = packs.rows[packs.starts[n] : packs.starts[n + 1]]
        assert pack.keys() == {"row", "id", "label", "group", kind, *columns}
        np.testing.assert_array_equal(pack["row"], rows)
        assert pack["id"] == [b"row-%03d" % row for row in rows]
        assert pack["label"] == [LABELS[row].encode() for row in rows]
        assert pack["group"] == [(GROUPS[row] or "").encode() for row in rows]
        assert list(pack[kind]) == values(kind, payload, rows)
        for name, column in columns.items():
            np.testing.assert_array_equal(pack[name], column[ends[n] : ends[n + 1]])
    manifests.check_shard(tmp_path / "triplets.json", shard)
    by_kind = {
        f"{scope}/{name}": sum(((pack["scope"] == s) & (pack["kind"] == k)).sum() for pack in found)
        for s, scope in enumerate(SCOPES)
        for k, name in enumerate(KINDS)
    }
    assert counts == {"packs": len(packs), "rows": len(packs.rows), **left_out, **by_kind}
    assert counts["guarded"] > 0 and min(by_kind.values()) > 0


def test_triplets_over_the_corpus_come_first_and_have_the_distances_of_their_rows(store, tmp_path):
    packs, path = packs_of(store, pack_rows=16), tmp_path / "t.tfrecord"
    write_packs(path, RULE, packs, False, store, Payload(store.split))
    d = oracle.distance(store.embeddings(np.arange(ROWS)))
    given = packs.triplets
    for n, pack in enumerate(read(path)):
        anchor, positive, negative = (pack["row"][pack[side]] for side in ("anchor", "positive", "negative"))
        np.testing.assert_array_equal(pack["d_ap"], d[anchor, positive].astype(np.float32))
        np.testing.assert_array_equal(pack["d_an"], d[anchor, negative].astype(np.float32))
        of = slice(*packs.triplet_starts[n : n + 2])
        many = of.stop - of.start
        assert pack["scope"].tolist() == [0] * many + [1] * (len(anchor) - many)
        for side, rows in (("anchor", anchor), ("positive", positive), ("negative", negative), ("kind", pack["kind"])):
            np.testing.assert_array_equal(rows[:many], getattr(given, side)[of])


def test_the_bytes_are_the_same_however_much_is_held(written_by_hand, tmp_path):
    _, store = written_by_hand
    packs = packs_of(store, pack_rows=16)
    made = set()
    for chunk_bytes, cache_bytes in itertools.product(EVERY_CHUNK, (0, 3000, 256 << 20)):
        payload = Payload(store.split, cache_bytes)
        shard, _ = write_packs(tmp_path / "t.tfrecord", RULE, packs, False, store, payload, chunk_bytes)
        made.add(shard.sha256)
    assert len(made) == 1


@pytest.mark.parametrize("chunk_bytes", EVERY_CHUNK)
def test_a_lone_triplet_is_three_rows(written_by_hand, tmp_path, chunk_bytes):
    (kind, payload), store = written_by_hand
    packs, path = packs_of(store, pack_rows=3), tmp_path / "t.tfrecord"
    shard, counts = write_packs(path, RULE, packs, True, store, Payload(store.split, 5000), chunk_bytes)
    given, found = packs.triplets, read(path)
    assert len(found) == len(given) == shard.records > 100
    for n, pack in enumerate(found):
        rows = [given.anchor[n], given.positive[n], given.negative[n]]
        assert pack["row"].tolist() == rows
        assert [pack[side].tolist() for side in ("anchor", "positive", "negative")] == [[0], [1], [2]]
        assert (pack["kind"], pack["scope"]) == (given.kind[n], 0)
        assert (pack["d_ap"], pack["d_an"]) == (given.d_ap[n], given.d_an[n])
        assert pack["id"] == [b"row-%03d" % row for row in rows]
        assert list(pack[kind]) == values(kind, payload, rows)
    kinds = np.bincount(given.kind, minlength=2).tolist()
    expected = {"corpus/semi-hard": kinds[0], "corpus/hard": kinds[1], "pack/semi-hard": 0, "pack/hard": 0}
    assert counts == {"packs": len(given), "rows": 3 * len(given), **expected}


def test_a_corpus_without_groups_has_none_in_its_packs(store, tmp_path):
    write_packs(tmp_path / "t.tfrecord", RULE, packs_of(store, pack_rows=16), False, store, Payload(store.split))
    assert all("group" not in pack for pack in read(tmp_path / "t.tfrecord"))


def test_a_shard_may_have_no_pack(store, tmp_path):
    none, zero = np.empty(0, np.int64), np.zeros(1, np.int64)
    packs = Packs(shard=0, rows=none, starts=zero, triplets=Triplets.none(), triplet_starts=zero)
    shard, counts = write_packs(tmp_path / "t.tfrecord", RULE, packs, False, store, Payload(store.split))
    assert read(tmp_path / "t.tfrecord") == [] and shard.records == 0
    assert not any(counts.values())


def test_a_pack_that_is_spread_begins_with_no_triplet(store, tmp_path):
    """Its triplets are all its own, whatever shard and number the pack has in its name."""
    rows, starts = np.arange(ROWS)[::-1].copy(), np.array([0, 30, 60, ROWS])
    packs = Packs(shard=1, rows=rows, starts=starts, triplets=Triplets.none(), triplet_starts=np.zeros(4, np.int64))
    write_packs(tmp_path / "t.tfrecord", RULE, packs, False, store, Payload(store.split))
    found = read(tmp_path / "t.tfrecord")
    np.testing.assert_array_equal(np.concatenate([pack["row"] for pack in found]), rows)
    assert all(len(pack["anchor"]) > 100 and (pack["scope"] == SCOPES.index("pack")).all() for pack in found)


def test_rows_are_read_again_when_they_did_not_fit(store):
    """Reading is told from keeping by taking the files away."""
    rows, length = np.array([80, 3, 41, 5]), store.split.codes("length", np.arange(ROWS))
    roomy = Payload(store.split, int(length[[80, 3, 41, 5, 7]].sum()))
    tight = Payload(store.split, int(length[[80, 3, 41, 5, 7]].sum()) - 1)
    for payload in (roomy, tight):
        payload.load(rows)
        payload.load(np.array([7]))
        assert payload.of(np.array([7]))["text"] == [b"text 7"]
    storage.remove(store.split.directory)
    roomy.load(rows[::-1])
    assert roomy.of(rows)["text"] == [b"text 80", b"text 3", b"text 41", b"text 5"]
    with pytest.raises(FileNotFoundError):
        tight.load(rows)
