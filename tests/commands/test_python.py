"""The public functions, as a user of Python meets them: a corpus, a model of one's own, one's own training."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline import Corpus, InputError, mine_corpus, mine_triplets, read_packs
from trainer import (
    ActiveTripletLoss,
    ContrastiveLoss,
    MemoryLoss,
    TripletLoss,
    TripletSemiHardLoss,
    evaluate_embeddings,
    evaluate_rounds,
    run_rounds,
    train_newest,
    triplet_dataset,
)  # fmt: skip
from trainer.measures.retrieval import retrieval
from trainer.options import TrainOptions


def network(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Dense(16)(keras.layers.Dense(64, "relu")(x))
    return keras.Model(inputs, keras.layers.UnitNormalization()(x))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    directory = tmp_path_factory.mktemp("python")
    digits = load_digits()
    images, labels = digits.images[:600].astype(np.uint8) * 15, digits.target[:600].astype(str)
    np.savez(directory / "digits.npz", images=images, labels=labels)
    return Corpus.ingest(f"arrays:{directory / 'digits.npz'}", str(directory / "run"), eval_share=0.3)


def fresh(corpus: Corpus, tmp_path) -> Corpus:
    return Corpus.ingest(corpus.manifest.source, tmp_path / "run", eval_share=0.3)


def test_a_corpus_is_opened_as_it_was_ingested(corpus, capfd):
    again = Corpus.ingest(corpus.manifest.source, corpus.run_dir, eval_share=0.3)
    assert again.fingerprint == corpus.fingerprint == Corpus.open(str(corpus.run_dir)).fingerprint
    rows = list(corpus.rows())
    assert len(rows) == corpus.split("train").rows and set(rows[0]) == {"id", "label", "image"}
    assert [row["label"] for row in rows] == sorted(row["label"] for row in rows)
    with pytest.raises(InputError, match="already holds"):
        Corpus.ingest("digits", corpus.run_dir)
    with pytest.raises(ValueError, match="corpus.json is missing"):
        Corpus.open(corpus.run_dir / "elsewhere")
    with pytest.raises(InputError, match="no split 'test'; there are train, validation, eval"):
        next(corpus.rows("test"))
    assert capfd.readouterr().out == ""


def test_rounds_of_a_model_that_is_trained_by_hand(corpus, tmp_path):
    corpus, model = fresh(corpus, tmp_path), network()
    mined = mine_corpus(corpus, model, margin=0.3, pick="nearest", pack_rows=64)
    assert (mined.round, mined.already) == (0, False) and mined.triplets > 0
    assert mine_corpus(corpus, model, margin=0.3, pick="nearest", pack_rows=64).already
    with pytest.raises(InputError, match="mined already with margin 0.3, asked for 0.2"):
        mine_corpus(corpus, model, pick="nearest", pack_rows=64)
    dataset = triplet_dataset(mined, batch_size=64)
    model.compile(keras.optimizers.Adam(3e-3), TripletLoss(margin=0.3))
    losses = model.fit(dataset, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    again = mine_corpus(corpus, model, margin=0.3)
    assert again.round == 1 and not again.already
    assert mine_corpus(corpus, tmp_path / "run/rounds/0001/checkpoint/model.keras", margin=0.3).already


def test_a_dataset_holds_the_packs_and_the_loss_is_the_plain_one(corpus, tmp_path):
    corpus, model = fresh(corpus, tmp_path), network()
    mined = mine_corpus(corpus, model, kind={"semi-hard": 1, "hard": 1}, margin=0.3, pack_rows=64)
    seen, distances = 0, []
    for inputs, triplets in triplet_dataset(mined, batch_size=64):
        seen += len(triplets)
        x = model(inputs).numpy().astype(np.float64)
        a, p, n = (x[triplets[:, side].numpy()] for side in range(3))
        d_ap, d_an = ((a - p) ** 2).sum(1), ((a - n) ** 2).sum(1)
        distances += list(np.maximum(0, 0.3 + d_ap - d_an))
        assert abs(float(TripletLoss(0.3)(triplets, x)) - np.mean(np.maximum(0, 0.3 + d_ap - d_an))) < 1e-5
    packs = list(read_packs(corpus.run_dir))
    assert seen == mined.triplets == sum(len(pack["anchor"]) for pack in packs)
    stored = np.concatenate([0.3 + pack["d_ap"] - pack["d_an"] for pack in packs])
    np.testing.assert_allclose(np.sort(distances), np.sort(np.maximum(0, stored)), atol=5e-3)
    with pytest.raises(InputError, match="nothing is mined"):
        triplet_dataset(corpus.run_dir, round=7)


def test_embeddings_of_another_encoder_give_what_its_model_gives(corpus, tmp_path):
    corpus, model = fresh(corpus, tmp_path), network()
    mined = mine_corpus(corpus, model, pack_rows=64)
    images = np.stack([keras.ops.convert_to_numpy(image) for image, in _images(corpus)])
    other = Corpus.ingest(corpus.manifest.source, tmp_path / "other", eval_share=0.3)
    given = mine_corpus(other, embeddings=model(images), pack_rows=64)
    assert given.triplet_digest == mined.triplet_digest and not (tmp_path / "other/rounds/0000/checkpoint").exists()
    assert "mined from embeddings" in str(given) and "next: python -m trainer.train" in str(mined)
    with pytest.raises(InputError, match="mined from embeddings, for which there is none"):
        train_newest(other.run_dir)
    assert mine_corpus(other, embeddings=model(images).numpy(), pack_rows=64).already
    assert mine_corpus(other, embeddings=images.reshape(len(images), -1), pack_rows=64).round == 1
    for wrong, why in ((np.ones((5, 4)), "5 rows"), (images * np.nan, "expected embeddings"), (None, "either")):
        with pytest.raises(InputError, match=why):
            mine_corpus(other, embeddings=wrong)
    with pytest.raises(TypeError, match="marge"):
        mine_corpus(other, model, marge=1)


def _images(corpus):
    import tensorflow as tf

    return ((tf.cast(tf.io.decode_png(row["image"]), tf.float32),) for row in corpus.rows())


def test_a_checkpoint_that_waits_is_not_replaced(corpus, tmp_path):
    corpus = fresh(corpus, tmp_path)
    mine_corpus(corpus, network(), pack_rows=64)
    trained = train_newest(corpus.run_dir)
    with pytest.raises(InputError, match="waits to be mined"):
        mine_corpus(corpus, network(seed=1))
    assert mine_corpus(corpus, trained.checkpoint).round == 1


def test_rounds_and_measures_return_values_and_print_nothing(corpus, tmp_path, capfd):
    corpus = fresh(corpus, tmp_path)
    done = run_rounds(str(corpus.run_dir), rounds=1, recipe="plain")
    found = evaluate_rounds(str(corpus.run_dir), (0, 1), retrieval_only=True).measures
    assert [line.round for line in done.rounds] == [0] and set(found) == {"round 0", "round 1"}
    assert capfd.readouterr().out == ""


def test_measures_of_any_embeddings_are_those_of_the_rows():
    digits = load_digits()
    found = evaluate_embeddings(digits.data[:300], digits.target[:300].astype(str), retrieval_only=False, nmi=True)
    unit = digits.data[:300] / np.linalg.norm(digits.data[:300], axis=1, keepdims=True)
    assert abs(found["map_at_r"] - retrieval(unit.astype(np.float32), digits.target[:300])["map_at_r"]) < 0.005
    assert {"roc_auc", "linear_probe", "nmi", "recall_at_1"} <= set(found)
    with pytest.raises(InputError, match="expected embeddings"):
        evaluate_embeddings(digits.data[:300], digits.target[:299])


def test_in_batch_losses_train_by_fit():
    digits = load_digits()
    images, labels = digits.images[:512, ..., None].astype(np.float32) * 15, digits.target[:512]
    for loss in (TripletSemiHardLoss(margin=0.5), MemoryLoss(network()(images), labels)):
        model = network(seed=2)
        model.compile(keras.optimizers.Adam(3e-3), loss)
        losses = model.fit(images, labels, batch_size=128, epochs=5, verbose=0).history["loss"]
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("loss", [TripletLoss, ActiveTripletLoss, ContrastiveLoss, TripletSemiHardLoss])
def test_losses_come_back_from_their_config(loss):
    assert type(loss(margin=0.7)).from_config(loss(margin=0.7).get_config()).margin == 0.7


def test_a_row_is_not_its_own_positive_in_a_memory():
    memory, labels = np.eye(3, dtype=np.float32)[[0, 1, 2]], np.array([5, 5, 6])
    near, own = np.array([[1.0, 0.0, 0.0]], np.float32), np.array([[5, 0]])
    assert float(MemoryLoss(memory, labels)(own, near)) > float(MemoryLoss(memory, labels)(own[:, 0], near)) > 0


def test_arrays_of_other_frameworks_and_missing_labels():
    import tensorflow as tf

    digits = load_digits()
    data, labels = digits.data[:200], digits.target[:200]
    found = mine_triplets(tf.constant(data), tf.constant(labels))
    np.testing.assert_array_equal(found.negative, mine_triplets(data, labels).negative)
    with pytest.raises(InputError, match=r"2 labels are None or NaN: rows \[0, 3\]"):
        mine_triplets(data[:4], [None, "a", "b", float("nan")])


def sequential() -> keras.Model:
    layers = keras.layers
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(8), layers.UnitNormalization()])


def test_a_sequential_model_and_a_compiled_one_are_mined_and_loaded(corpus, tmp_path):
    corpus, model = fresh(corpus, tmp_path), sequential()
    model.compile("adam", TripletLoss(0.2))
    mined = mine_corpus(corpus, model, pack_rows=64)
    assert mine_corpus(corpus, model, pack_rows=64).already and mined.round == 0
    model.save(tmp_path / "own.keras")
    assert keras.models.load_model(tmp_path / "own.keras").loss.margin == 0.2


def test_what_is_refused_is_not_in_the_way(corpus, tmp_path):
    corpus = fresh(corpus, tmp_path)
    wide = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.UnitNormalization()])
    long = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(8)])
    for model, options, said in (
        (wide, {}, "the network takes float32"),
        (long, {}, r"an output has length .*, not 1\. Let it end in keras\.layers\.UnitNormalization"),
        (network(), {"packs": "spread", "positives": 2, "fill": 2}, "take no positives"),
        (network(), {"seed": "a"}, "seed must be a whole number; found 'a'"),
        (network(), {"seed": None}, "seed must be a whole number; found None"),
        (network(), {"anchors": 2.5}, "anchors must be a whole number or None; found 2.5"),
        (network(), {"packs": "foo"}, "packs must be 'triplets' or 'spread'; found 'foo'"),
        (network(), {"threads": 0}, "threads must be at least 1; found 0"),
    ):
        with pytest.raises(InputError, match=said):
            mine_corpus(corpus, model, **{"pack_rows": 32, **options})
    mined = mine_corpus(corpus, network(1), pack_rows=np.int64(64), margin=np.float64(0.3), seed=np.int64(1))
    assert mined.round == 0 and train_newest(corpus.run_dir).round == 0


def test_labels_that_are_missing_or_too_large_are_refused():
    with pytest.raises(InputError, match="2 labels are None or NaN"):
        evaluate_embeddings(np.eye(4), [1, 1, None, float("nan")])
    with pytest.raises(InputError, match=r"below 2\^24"):
        MemoryLoss(np.eye(2, dtype=np.float32), [7, 20_000_001])
    with pytest.raises(InputError, match=r"memory \[n, dim\] and labels \[n\]"):
        MemoryLoss(np.eye(2, dtype=np.float32), [7, 8, 9])


def test_one_trainer_at_a_time_from_python_too(small_mined):
    from pipeline.errors import Locked
    from pipeline.process import lock

    with lock.hold(small_mined, lock.TRAINER):
        for work in (train_newest, run_rounds):
            with pytest.raises(Locked):
                work(small_mined)


def test_a_trainers_checkpoint_stays_whatever_is_refused(corpus, tmp_path):
    corpus = fresh(corpus, tmp_path)
    mine_corpus(corpus, network(), pack_rows=64)
    waiting = train_newest(corpus.run_dir).checkpoint
    for model in (keras.models.load_model(waiting, compile=False), waiting):
        with pytest.raises(InputError, match="packs that are spread take no positives"):
            mine_corpus(corpus, model, packs="spread", positives=2, pack_rows=32, fill=2)
    assert mine_corpus(corpus, waiting, pack_rows=64).round == 1


def test_a_round_that_there_is_not_is_refused(small_mined):
    with pytest.raises(InputError, match="there is no round 'bset'"):
        evaluate_rounds(small_mined, ("bset",))
    with pytest.raises(InputError, match="nothing is mined in .*0007 yet"):
        next(read_packs(small_mined, 7))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: mine_triplets(np.eye(2), [0, 1], seed="a"), "seed must be a whole number; found 'a'"),
        (lambda run: mine_triplets(np.eye(2), [0, 1], margin="b"), "margin must be a number; found 'b'"),
        (lambda run: mine_triplets([[1], [2, 3]], [0, 1]), "expected embeddings .n, dim., numbers"),
        (lambda run: triplet_dataset(run, batch_size=0), "batch_size must be at least 1; found 0"),
        (lambda run: triplet_dataset(run, seed=-1), "seed must be 0 or more; found -1"),
        (lambda run: triplet_dataset(run, input_shape=(8, 8)), r"1 or 3 channels\); found \(8, 8\)"),
        (lambda run: triplet_dataset(run, input_shape=(8, 8, 2)), r"1 or 3 channels\); found \(8, 8, 2\)"),
        (lambda run: triplet_dataset(run, input_shape=(None, None, 1)), r"1 or 3 channels\); found \(None, None, 1\)"),
        (lambda run: mine_corpus(Corpus.open(run), "x.keras", negatives="hard"), "as kind=; found negatives='hard'"),
        (lambda run: TripletLoss(margin=-1.0), "margin must be above 0; found -1.0"),
        (lambda run: MemoryLoss([[1.0]], [0], temperature=0.0), "temperature must be above 0; found 0.0"),
        (lambda run: run_rounds(run, rounds=0), "rounds must be at least 1; found 0"),
        (lambda run: TrainOptions(epochs="c"), "epochs must be a whole number; found 'c'"),
    ],
)
def test_a_wrong_argument_is_named(small_mined, call, said):
    with pytest.raises(InputError, match=said):
        call(small_mined)
