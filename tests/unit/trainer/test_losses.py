"""Every loss against NumPy, by loops; gradients where they could be infinite; memory."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import losses


def unit(rng, rows, dim=8):
    vectors = rng.standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def one_by_one(name, d_ap, d_an, margin):
    """The loss of a list of triplets, in float64."""
    each = [max(0.0, margin + ap - an) for ap, an in zip(d_ap, d_an, strict=True)]
    if name == "contrastive":
        each = [ap / 2 + max(0.0, margin - an**0.5) ** 2 / 2 for ap, an in zip(d_ap, d_an, strict=True)]
    if name == "active-triplet":
        each = [loss for loss in each if loss > 0]
    return sum(each) / len(each) if each else 0.0


def of(name, d_ap, d_an, margin):
    """A loss of distances, as the trainer's step takes it."""
    each = losses.LOSSES[name](margin).of_distances(d_ap, d_an)
    return losses.mean_or_zero(each, tf.ones_like(each))


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("margin", [0.2, 1.0])
def test_losses_equal_numpy(name, margin):
    rng = np.random.default_rng(0)
    embeddings, triplets = unit(rng, 40), rng.integers(0, 40, (500, 3))
    a, p, n = (embeddings[triplets[:, k]].astype(np.float64) for k in range(3))
    d_ap, d_an = ((a - p) ** 2).sum(axis=1), ((a - n) ** 2).sum(axis=1)
    ours = losses.triplet_distances(embeddings, tf.constant(triplets, tf.int32))
    np.testing.assert_allclose(ours[0], d_ap, atol=1e-6)
    np.testing.assert_allclose(ours[1], d_an, atol=1e-6)
    assert abs(float(of(name, *ours, margin)) - one_by_one(name, d_ap, d_an, margin)) < 1e-6


@pytest.mark.parametrize("name", losses.LOSSES)
def test_nothing_active_and_nothing_at_all_is_zero(name):
    far = tf.constant([0.0, 0.0]), tf.constant([4.0, 4.0])
    assert float(of(name, *far, 0.2)) == 0
    assert float(of(name, tf.zeros(0), tf.zeros(0), 0.2)) == 0


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_batch_without_triplets_has_loss_zero(name):
    assert float(losses.LOSSES[name](0.2)(np.zeros((0, 3)), np.eye(4, dtype=np.float32))) == 0


@pytest.mark.parametrize("name", losses.LOSSES)
def test_gradients_are_finite_where_rows_coincide(name):
    embeddings = tf.Variable(np.repeat(unit(np.random.default_rng(1), 1), 3, axis=0))
    with tf.GradientTape() as tape:
        loss = losses.LOSSES[name](0.5)(tf.constant([[0, 1, 2]]), embeddings)
    assert float(loss) > 0
    assert np.isfinite(tf.convert_to_tensor(tape.gradient(loss, embeddings)).numpy()).all()


def memory_loss_by_loops(embeddings, memory, positive, negative, batch_positive):
    """In float64, one pair at a time."""
    t, of_anchors = losses.MEMORY_TEMPERATURE, []
    for a in range(len(embeddings)):
        against = [embeddings[a] @ memory[n] for n in np.flatnonzero(negative[a])]
        towards = [embeddings[a] @ memory[p] for p in np.flatnonzero(positive[a])]
        towards += [embeddings[a] @ embeddings[p] for p in np.flatnonzero(batch_positive[a])]
        if against and towards:
            of_anchors.append(np.mean([np.log1p(sum(np.exp((n - p) / t) for n in against)) for p in towards]))
    return np.mean(of_anchors)


def test_the_memorys_loss_equals_loops_and_its_gradient_is_finite():
    """The first row has no negatives, the second no positives."""
    rng = np.random.default_rng(2)
    embeddings, memory = unit(rng, 24, 5), unit(rng, 40, 5)
    label, of_memory = rng.integers(0, 4, 24), rng.integers(0, 4, 40)
    positive, pair = label[:, None] == of_memory, (label[:, None] == label) & ~np.eye(24, dtype=bool)
    negative = ~positive
    negative[0], positive[1], pair[1] = False, False, False
    x = tf.Variable(embeddings)
    with tf.GradientTape() as tape:
        loss = losses.memory_loss(x, memory, positive, negative, pair)
    expected = memory_loss_by_loops(embeddings.astype(float), memory, positive, negative, pair)
    assert abs(float(loss) - expected) < 1e-5
    gradient = tape.gradient(loss, x).numpy()
    assert np.isfinite(gradient).all() and np.abs(gradient[2:]).max(axis=1).min() > 0
    nobody = np.zeros_like(positive)
    assert float(losses.memory_loss(x, memory, nobody, nobody, np.zeros_like(pair))) == 0


def test_a_model_with_a_memory_is_loaded_without_it(tmp_path):
    path, rows = tmp_path / "model.keras", np.eye(2, dtype=np.float32)
    model = keras.Sequential([keras.Input([2]), keras.layers.UnitNormalization()])
    model.compile(loss=losses.MemoryLoss(rows, [7, 8]))
    model.save(path)
    np.testing.assert_array_equal(keras.saving.load_model(path, compile=False)(rows), model(rows))
    assert "`keras.saving.load_model(path, compile=False)`" in losses.MemoryLoss.__doc__
    with pytest.raises(TypeError, match="Could not locate class 'MemoryLoss'"):
        keras.saving.load_model(path)


def semihard_by_loops(label, embeddings, margin):
    d = ((embeddings[:, None].astype(np.float64) - embeddings[None]) ** 2).sum(axis=2)
    found = []
    for a in range(len(label)):
        for p in range(len(label)):
            if a == p or label[a] != label[p]:
                continue
            others = [d[a, n] for n in range(len(label)) if label[n] != label[a]]
            beyond = [x for x in others if x > d[a, p]]
            chosen = min(beyond) if beyond else max(others) if others else np.inf
            found.append(max(0, margin + d[a, p] - chosen))
    return np.mean(found) if found else 0.0


@pytest.mark.parametrize("margin", [0.2, 1.0])
@pytest.mark.parametrize("classes", [1, 2, 5, 30, 1000])
def test_semihard_loss_equals_loops(classes, margin):
    """1,000 classes: anchors without a positive. One class: no negative at all."""
    rng = np.random.default_rng(classes)
    label, embeddings = rng.integers(0, classes, 30), unit(rng, 30, 3)
    with tf.GradientTape() as tape:
        x = tf.Variable(embeddings)
        loss = losses.triplet_semihard_loss(tf.constant(label), x, margin)
    assert abs(float(loss) - semihard_by_loops(label, embeddings, margin)) < 1e-5
    same = label[:, None] == label[None, :]
    picked = losses.picked_triplet_loss(embeddings, same & ~np.eye(len(label), dtype=bool), ~same, margin)
    np.testing.assert_allclose(picked, loss, rtol=1e-6)
    assert np.isfinite(tape.gradient(loss, x).numpy()).all()


def in_batch_by_loops(name, label, embeddings, of_memory, memory, margin=0.3, temperature=0.1):
    """In float64, a row at a time; of_memory: -1 is an empty place."""
    if "+" in name:
        return sum(in_batch_by_loops(one, label, embeddings, of_memory, memory) for one in name.split("+"))
    every, labels = np.concatenate([embeddings, memory]).astype(float), np.concatenate([label, of_memory])
    found = []
    for a in range(len(label)):
        d = ((every - every[a]) ** 2).sum(axis=1)
        positive = [p for p in np.flatnonzero(labels == label[a]) if p != a]
        negative = np.flatnonzero((labels != label[a]) & (labels >= 0))
        if name == "semi-hard":
            for p in (p for p in positive if p < len(label)):
                beyond = d[negative][d[negative] > d[p]]
                found.append(max(0, margin + d[p] - (beyond.min() if len(beyond) else d[negative].max())))
        elif positive and name == "batch-hard":
            found.append(max(0, margin + d[positive].max() - d[negative].min()))
        elif positive:
            towards, against = (1 - d / 2) / temperature, (1 - d[negative] / 2) / temperature
            found.append(np.mean([np.log1p(np.exp(against - towards[p]).sum()) for p in positive]))
    return np.mean(found)


@pytest.mark.parametrize("places", [0, 50])
@pytest.mark.parametrize("name", losses.IN_BATCH)
def test_in_batch_losses_equal_loops_with_a_memory_too(name, places):
    rng = np.random.default_rng(5)
    label, embeddings = rng.integers(0, 6, 24), unit(rng, 24, 4)
    of_memory, memory = rng.integers(-1, 8, places), unit(rng, 50, 4)[:places]
    loss_of, takes = losses.IN_BATCH[name]
    options = {option: {"temperature": 0.1, "margin": 0.3}[option] for option in takes}
    x = tf.Variable(embeddings)
    with tf.GradientTape() as tape:
        further = {"memory": tf.constant(memory), "memory_labels": tf.constant(of_memory)} if places else {}
        loss = loss_of(tf.constant(label), x, **options, **further)
    assert abs(float(loss) - in_batch_by_loops(name, label, embeddings, of_memory, memory)) < 1e-5
    assert np.isfinite(tape.gradient(loss, x).numpy()).all()
    alone = loss_of(tf.constant([0, 0, 0]), x[:3], **options)  # no negative at all
    assert float(alone) == 0


def test_semihard_loss_holds_no_cube():
    """Batch 200: no tensor of its graph, or of its gradient's, has more than a few squares of numbers."""

    @tf.function(input_signature=[tf.TensorSpec([200], tf.int64), tf.TensorSpec([200, 16])])
    def gradient(labels, embeddings):
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            loss = losses.triplet_semihard_loss(labels, embeddings, 0.2)
        return tape.gradient(loss, embeddings)

    sizes = [
        int(np.prod(out.shape))
        for op in gradient.get_concrete_function().graph.get_operations()
        for out in op.outputs
        if out.shape.is_fully_defined()
    ]
    assert 200 * 200 in sizes and max(sizes) <= 3 * 200 * 200
