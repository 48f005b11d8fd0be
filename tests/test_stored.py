"""Stored rows: who is whose positive and negative, what is drawn, and training with them end to end."""

import json
import shutil

import numpy as np
import pytest
from test_mine import guarded_corpus
from test_step import batch, moved, network, on_two_devices

from pipeline import ingest, mine, records
from pipeline.pool import Pool
from pipeline.records import InputError
from pipeline.selection import Block
from trainer import data, losses, stored, train

tf = records.import_tensorflow()


@pytest.fixture(scope="module")
def copies_and_groups(tmp_path_factory):
    """A mined round that saw 9 of 12 classes of vectors, with copies and groups across classes."""
    directory = tmp_path_factory.mktemp("stored")
    call = ["--run_dir", str(directory / "run")]
    shares = ["--validation_share", "0", "--eval_share", "0"]
    assert ingest.main([*call, "--source", guarded_corpus(directory), *shares]) == 0
    assert train.main([*call, "--init"]) == 0
    assert mine.main([*call, "--class_pool", "9", "--margin", "1.0"]) == 0
    return directory / "run"


def opened(run_dir, most, seed=0):
    manifest = records.open_triplets(run_dir, 0, records.open_corpus(run_dir))
    class_pool = manifest["options"]["class_pool"]
    return stored.StoredRows(Pool(run_dir, 0, manifest["checkpoint_digest"], class_pool, 0), most, seed)


@pytest.mark.parametrize("most", [10_000, 90])
def test_positives_and_negatives_are_those_of_mining(copies_and_groups, most):
    found = opened(copies_and_groups, most)
    split = found.pool.split
    everything = [records.parse_example(record) for record in split.read(np.arange(split.rows))]
    payload = [example["vector"].tobytes() for example in everything]
    label, group = split.class_of(np.arange(split.rows)), [example["group"][0] for example in everything]
    rows = found.pool.row(np.random.default_rng(1).choice(found.pool.rows, 40, replace=False))
    place, stored_place, positive, negative, batch_positive = found(rows)
    assert split.copies and split.grouped and found.pool.rows < split.rows
    assert len(stored_place) == min(most, found.pool.rows)
    there = found.pool.row(stored_place)
    np.testing.assert_array_equal(found.pool.row(place), rows)
    np.testing.assert_array_equal(found.embedding[stored_place], found.pool.embeddings(there))
    for i, a in enumerate(rows):
        for j, b in enumerate(there):
            if sum(payload[b] == other for other in payload) > 1:
                continue
            assert positive[i, j] == (label[a] == label[b] and a != b)
            assert negative[i, j] == (label[a] != label[b] and group[a] != group[b])
        for j, b in enumerate(rows):
            assert batch_positive[i, j] == (label[a] == label[b] and payload[a] != payload[b])


def test_copies_are_neither_positives_nor_negatives(mined):
    split = records.open_corpus(mined).split("train")
    first, next_class = split.first_rows[0], split.first_rows[1]

    def block(row, content, group):
        row, vectors = np.array(row), np.zeros((len(row), 2), np.float32)
        return Block(row=row, embedding=vectors, content=np.array(content), group=np.array(group))

    one = block([first], [100], [7])
    rows = [first, first + 1, first + 2, next_class, next_class + 1, next_class + 2]
    other = block(rows, [100, 101, 100, 100, 103, 104], [7, 7, -1, -1, 7, -1])
    positive, negative = stored._kinds(split, one, other)
    assert positive.tolist() == [[False, True, False, False, False, False]]
    assert negative.tolist() == [[False, False, False, False, False, True]]
    without_group = block([first + 3], [109], [-1])
    assert stored._kinds(split, without_group, other)[1].tolist() == [[False, False, False, True, True, True]]


def test_a_draw_has_classmates_for_every_row_is_seeded_and_otherwise_uniform(mined):
    corpus = records.open_corpus(mined)
    first = corpus.split("train").first_rows
    rows = np.array([first[2], first[2] + 5, first[7]])
    found = opened(mined, 100)
    drawn = found.pool.row(found._drawn(rows))
    assert len(np.unique(drawn)) == 100
    label = found.pool.split.class_of(drawn)
    assert all(np.sum(label == of) >= stored.CLASSMATES for of in (2, 7))
    np.testing.assert_array_equal(drawn, found.pool.row(found._drawn(rows)))
    assert not np.array_equal(drawn, found.pool.row(opened(mined, 100, seed=1)._drawn(rows)))
    counts = np.zeros(len(first) - 1)
    for seed in range(40):
        counts += np.bincount(found.pool.split.class_of(opened(mined, 100, seed)._drawn(rows)), minlength=len(counts))
    others = np.delete(counts, [2, 7]) / np.delete(np.diff(first), [2, 7])
    assert others.max() / others.min() < 1.35


def by_loops(embeddings, there, positive, negative, batch_positive):
    """The loss in float64, one pair at a time."""
    t, of_anchors = losses.STORED_TEMPERATURE, []
    for a in range(len(embeddings)):
        against = [embeddings[a] @ there[n] for n in np.flatnonzero(negative[a])]
        towards = [embeddings[a] @ there[p] for p in np.flatnonzero(positive[a])]
        towards += [embeddings[a] @ embeddings[p] for p in np.flatnonzero(batch_positive[a])]
        if against and towards:
            of_anchors.append(np.mean([np.log1p(sum(np.exp((n - p) / t) for n in against)) for p in towards]))
    return np.mean(of_anchors) if of_anchors else 0.0


def of_stored(seed=0, rows=24, count=40, padding=0):
    """What StoredRows adds to a batch of that many rows; the first row has no negatives, the second no positives."""
    rng = np.random.default_rng([5, seed])
    there = rng.standard_normal((count, 5)).astype(np.float32)
    label, of_rows = rng.integers(0, 4, count), rng.integers(0, 4, rows)
    positive, pair = of_rows[:, None] == label, of_rows[:, None] == of_rows
    np.fill_diagonal(pair, False)
    negative = ~positive
    negative[0], positive[1], pair[1] = False, False, False
    return {
        "stored": tf.constant(there / np.linalg.norm(there, axis=1, keepdims=True)),
        "stored_positive": tf.pad(positive, [[0, padding], [0, 0]]),
        "stored_negative": tf.pad(negative, [[0, padding], [0, 0]]),
        "batch_positive": tf.pad(pair, [[0, padding], [0, padding]]),
    }


def test_the_loss_is_that_of_loops_and_its_gradient_finite():
    given = of_stored()
    rng = np.random.default_rng(2)
    embeddings = rng.standard_normal((24, 5)).astype(np.float32)
    embeddings = tf.Variable(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))
    with tf.GradientTape() as tape:
        loss = losses.stored_rows_loss(embeddings, **given)
    expected = by_loops(embeddings.numpy().astype(float), *(value.numpy() for value in given.values()))
    assert abs(float(loss) - expected) < 1e-5
    gradient = tape.gradient(loss, embeddings).numpy()
    assert np.isfinite(gradient).all() and np.abs(gradient[2:]).min(axis=1).max() > 0
    nobody = {name: value if name == "stored" else tf.zeros_like(value) for name, value in given.items()}
    assert float(losses.stored_rows_loss(embeddings, **nobody)) == 0


@pytest.mark.parametrize("padding", [0, 8])
def test_xla_and_its_padding_change_nothing(padding):
    plain, values = moved(network(True), [batch() | of_stored()])
    padded, of_padded = moved(network(True), [batch(padding=padding) | of_stored(padding=padding)], jit=True)
    without, _ = moved(network(True), [batch()])
    assert values[4] > 0 and any(np.abs(a - b).max() > 1e-3 for a, b in zip(plain, without, strict=True))
    for one, other in zip(plain, padded, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(values, of_padded, rtol=1e-5)


TWO_DEVICES = """
import test_stored
bare = [t.batch(0), t.batch(1, rows=20, triplets=32)]
batches = [bare[0] | test_stored.of_stored(0), bare[1] | test_stored.of_stored(1, rows=20)]
alone = [t.moved(t.network(False), [batch]) for batch in batches]
plain = [t.moved(t.network(False), [batch])[0] for batch in bare]
with two.scope():
    model = t.network(False)
both, values = t.moved(model, batches, two)
share, of_triplets = t.ROWS / (t.ROWS + 20), t.TRIPLETS / (t.TRIPLETS + 32)
for one, other, of_one, of_other, found in zip(alone[0][0], alone[1][0], *plain, both, strict=True):
    expected = of_triplets * of_one + (1 - of_triplets) * of_other
    expected += share * (one - of_one) + (1 - share) * (other - of_other)
    np.testing.assert_allclose(expected, found, atol=1e-5)
assert abs(share * alone[0][1][4] + (1 - share) * alone[1][1][4] - values[4]) < 1e-5
"""


def test_two_devices_weigh_their_stored_rows_by_their_rows():
    on_two_devices(TWO_DEVICES)


@pytest.mark.parametrize("most", [10_000, 300])
def test_padded_batches_hold_what_unpadded_ones_hold(mined, most):
    corpus = records.open_corpus(mined)
    manifest = records.open_triplets(mined, 0, corpus)
    directory = records.manifest_path(mined, 0).parent
    each = [
        list(data.triplet_batches(directory, manifest, (8, 8, 1), 128, 1, pad=pad, stored=opened(mined, most)))
        for pad in (False, True)
    ]
    for plain, padded in zip(*each, strict=True):
        rows = len(plain["inputs"])
        for name in ("stored_place", "place"):
            np.testing.assert_array_equal(plain[name], padded[name][: len(plain[name])])
        assert (padded["place"][rows:].numpy() == -1).all()
        for name in ("stored_positive", "stored_negative"):
            np.testing.assert_array_equal(plain[name], padded[name][:rows])
            assert not padded[name][rows:].numpy().any() and plain[name].numpy().any(axis=1).all()
        np.testing.assert_array_equal(plain["batch_positive"], padded["batch_positive"][:rows, :rows])
        assert padded["batch_positive"].shape == (128, 128)
        assert padded["batch_positive"].numpy().sum() == plain["batch_positive"].numpy().sum()


def test_a_round_trains_with_them_tells_their_loss_and_lets_them_go(mined, tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(train, "StoredRows", lambda *given: made.append(stored.StoredRows(*given)) or made[-1])
    told = []
    for number in (0, 2000):
        run = shutil.copytree(mined, tmp_path / str(number))
        assert train.main(["--run_dir", str(run), "--stored_rows", str(number)]) == 0
        told.append(json.loads((run / "rounds/0000/train/metrics.json").read_text()))
    assert told[0]["stored_rows"] == 0 and told[1]["stored_rows"] == 2000
    assert told[0]["epochs"][0]["stored_rows_loss"] == 0 < told[1]["epochs"][0]["stored_rows_loss"]
    assert told[0]["next_checkpoint_digest"] != told[1]["next_checkpoint_digest"]
    assert capsys.readouterr().out.count("loss of stored rows") == 1
    [one] = made
    assert not hasattr(one, "embedding")


@pytest.mark.parametrize("jit", [[], ["--jit"]])
def test_a_step_meets_what_the_steps_before_it_made_of_their_rows(mined, tmp_path, monkeypatch, jit):
    seen, renew = [], stored.StoredRows.renew

    def watched(self, batch, embeddings):
        np.testing.assert_array_equal(batch["stored"], self.embedding[batch["stored_place"].numpy()])
        before = self.embedding.copy()
        renew(self, batch, embeddings)
        place = batch["place"].numpy()
        changed = np.flatnonzero((self.embedding != before).any(axis=1))
        assert set(changed) <= set(place[place >= 0]) and len(changed) > 0.9 * (place >= 0).sum()
        np.testing.assert_allclose(np.linalg.norm(self.embedding, axis=1), 1, atol=1e-3)
        seen.append(place)

    monkeypatch.setattr(stored.StoredRows, "renew", watched)
    run = shutil.copytree(mined, tmp_path / "run")
    assert train.main(["--run_dir", str(run), "--stored_rows", "500", *jit]) == 0
    manifest = records.open_triplets(mined, 0, records.open_corpus(mined))
    assert len(seen) == manifest["packs"] and sum((place >= 0).sum() for place in seen) == manifest["rows"]


def test_embeddings_that_are_gone_or_altered_are_named(mined, tmp_path):
    run = shutil.copytree(mined, tmp_path / "run")
    [path] = run.glob("rounds/0000/embeddings/*/*.npy")
    array = np.load(path)
    np.save(path, array[::-1])
    with pytest.raises(InputError, match=r"train-.*\.npy is not what was mined with.* --stored_rows 0"):
        train.main(["--run_dir", str(run), "--stored_rows", "100"])
    path.unlink()
    with pytest.raises(InputError, match=r"train-.*\.npy is missing"):
        train.main(["--run_dir", str(run), "--stored_rows", "100"])
    assert train.main(["--run_dir", str(run), "--stored_rows", "0"]) == 0
