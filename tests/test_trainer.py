"""Batches against the packs they come from, training and rounds end to end."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import command, read_packs

from pipeline import mine, records, rounds
from pipeline.embed import Embedder, decode
from pipeline.records import InputError
from trainer import data, evaluate, models, step, train

tf = records.import_tensorflow()
import keras  # noqa: E402


def unit(rng, rows, dim=8):
    vectors = rng.standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("batch_rows", "pad"), [(128, False), (300, False), (300, True)])
def test_batches_hold_every_pack_once(mined, batch_rows, pad):
    corpus = records.open_corpus(mined)
    manifest = records.open_triplets(mined, 0, corpus)
    directory = records.manifest_path(mined, 0).parent
    written = set()
    for pack in read_packs(mined):
        images = decode(corpus.features, tf.constant(pack["image"]), (8, 8, 1)).numpy()
        sides = zip(pack["anchor"], pack["positive"], pack["negative"], strict=True)
        written |= {tuple(images[side].tobytes() for side in triplet) for triplet in sides}
    read, rows, order = set(), 0, []
    for batch in data.triplet_batches(directory, manifest, (8, 8, 1), batch_rows, seed=1, pad=pad):
        inputs, listed = batch["inputs"].numpy(), batch["triplets"].numpy()[batch["valid"].numpy() == 1]
        assert (len(inputs) == batch_rows) if pad else batch["real"].numpy().all()
        assert len(inputs) <= batch_rows
        assert listed.max() < batch["real"].numpy().sum()
        rows += int(batch["real"].numpy().sum())
        order.append(inputs[0].tobytes())
        read |= {tuple(inputs[side].tobytes() for side in triplet) for triplet in listed}
    assert read == written and rows == manifest["rows"]
    for seed, same in ((1, True), (2, False)):
        again = [
            b["inputs"].numpy()[0].tobytes()
            for b in data.triplet_batches(directory, manifest, (8, 8, 1), batch_rows, seed)
        ]
        assert (again == order) is same


def test_online_batches_are_p_by_k_and_seeded(digits):
    corpus = records.open_corpus(digits)
    once = [(x.numpy(), y.numpy()) for x, y in data.online_batches(corpus, (8, 8, 1), 5, 4, steps=3, seed=7)]
    for inputs, label in once:
        assert inputs.shape == (20, 8, 8, 1)
        assert sorted(np.unique(label, return_counts=True)[1]) == [4] * 5
        assert len({image.tobytes() for image in inputs}) == 20
    again = [x.numpy() for x, _ in data.online_batches(corpus, (8, 8, 1), 5, 4, steps=3, seed=7)]
    np.testing.assert_array_equal([x for x, _ in once], again)


def test_in_batch_no_class_and_no_row_comes_again_before_all_have(digits):
    corpus = records.open_corpus(digits)
    batches = [(x.numpy(), y.numpy()) for x, y in data.online_batches(corpus, (8, 8, 1), 4, 4, steps=20, seed=7)]
    labels = np.concatenate([label[::4] for _, label in batches])
    for deck in labels.reshape(-1, 10):
        assert sorted(deck) == list(range(10))
    seen = [image.tobytes() for inputs, _ in batches for image in inputs]
    assert len(set(seen)) == len(seen) == 320  # of each class 32, and the smallest has more


def test_a_class_with_fewer_rows_than_a_batch_takes_gives_each_as_often():
    dealt = data._shuffled(np.random.default_rng(0), np.empty(0, np.int64), np.arange(3), 12)
    assert [sorted(dealt[k : k + 3]) for k in (0, 3, 6, 9)] == [[0, 1, 2]] * 4


def test_what_is_left_of_a_deck_does_not_come_together_in_the_next():
    rng, left, together = np.random.default_rng(0), np.arange(2), 0
    for _ in range(100):
        dealt = data._shuffled(rng, left, np.arange(10), 4)
        assert len(dealt) == 12 and len(set(dealt[:4])) == 4
        together += set(left) <= set(dealt[8:])
    assert together < 50


def test_two_rounds_each_mined_with_the_checkpoint_that_the_last_one_trained(fresh_run, capsys):
    assert rounds.main(["--run_dir", str(fresh_run), "--rounds", "2"]) == 0
    corpus = records.open_corpus(fresh_run)
    manifests = [records.open_triplets(fresh_run, number, corpus) for number in (0, 1)]
    metrics = [json.loads((records.round_dir(fresh_run, n) / "train/metrics.json").read_text()) for n in (0, 1)]
    digest = [
        records.checkpoint_digest(records.load_checkpoint(records.checkpoint_path(fresh_run, n))) for n in (0, 1, 2)
    ]
    assert len(set(digest)) == 3
    for n in (0, 1):
        assert manifests[n]["checkpoint_digest"] == metrics[n]["checkpoint_digest"] == digest[n]
        assert metrics[n]["next_checkpoint_digest"] == digest[n + 1]
        assert 0 < metrics[n]["epochs"][0]["active_share"] < 1
        assert list((records.round_dir(fresh_run, n) / "train/logs").iterdir())
    assert manifests[0]["triplet_digest"] != manifests[1]["triplet_digest"]
    assert not (records.round_dir(fresh_run, 2) / "triplets").exists()
    assert f"pipeline.mine {rounds.MINE}; trainer.train {rounds.TRAIN} --decay_rounds 2\n" in capsys.readouterr().out
    assert all(m["margin"] == 1.0 and m["stored_rows"] == 10_000 for m in metrics)
    assert [m["options"]["fill"] for m in manifests] == [2, 2]
    # The digits are so well apart by now that a margin of 0.2 leaves no triplet.
    assert rounds.main(["--run_dir", str(fresh_run), "--rounds", "1", "--plain", "--mine", "--margin 1.5"]) == 0
    plain = json.loads((records.round_dir(fresh_run, 2) / "train/metrics.json").read_text())
    assert plain["margin"] == 1.5 and plain["stored_rows"] == 0 and plain["batch_rows"] == 128
    assert records.open_triplets(fresh_run, 2, corpus)["options"]["fill"] == mine.FILL


def test_rounds_train_what_was_mined_in_larger_packs(mined, tmp_path):
    run = shutil.copytree(mined, tmp_path / "run")
    assert rounds.main(["--run_dir", str(run), "--rounds", "1"]) == 0
    metrics = json.loads((records.round_dir(run, 0) / "train/metrics.json").read_text())
    assert metrics["batch_rows"] == 128 and metrics["stored_rows"] == 10_000


def test_a_batch_is_a_pack_or_as_many_lone_triplets_as_fit(fresh_run):
    for number, (flags, rows) in enumerate([("--pack_rows 32 --fill 2", 32), ("--pack_rows 3", 128)]):
        assert mine.main(["--run_dir", str(fresh_run), "--margin", "1.0", "--anchors", "100", *flags.split()]) == 0
        assert train.main(["--run_dir", str(fresh_run)]) == 0
        metrics = json.loads((records.round_dir(fresh_run, number) / "train/metrics.json").read_text())
        assert metrics["batch_rows"] == rows
        assert metrics["steps"] == math.ceil(metrics["image_passes"] / (32 if number == 0 else 126))


def test_a_warm_up_takes_as_many_passes_over_the_corpus_as_it_is_told(fresh_run):
    assert train.main(["--run_dir", str(fresh_run), "--online", "--epochs", "2"]) == 0
    warm_up = json.loads((records.round_dir(fresh_run, 0) / "train/warmup.json").read_text())["key"]
    rows = records.open_corpus(fresh_run).split("train").rows
    assert warm_up["steps"] == 2 * math.ceil(rows / (4 * warm_up["classes"]))


def test_training_makes_retrieval_better_and_stops_when_done(mined, tmp_path, capsys):
    run = shutil.copytree(mined, tmp_path / "run")
    done = command("trainer.train", "--run_dir", run)
    assert done.returncode == 0, done.stderr
    assert "in training mode" in done.stdout and "active" in done.stdout and "CPU" in done.stdout
    assert not done.stderr
    results = [evaluate.evaluate(run, n, records.open_corpus(run), "eval")["map_at_r"] for n in (0, 1)]
    assert results[1] > results[0] + 0.1
    assert train.main(["--run_dir", str(run)]) == 0
    assert "trained already" in capsys.readouterr().out


def test_the_learning_rate_falls_over_as_many_rounds_as_asked(mined, tmp_path, monkeypatch):
    run, rates, decayed = shutil.copytree(mined, tmp_path / "run"), [], train.decayed
    monkeypatch.setattr(train, "decayed", lambda *given: rates[-1].append(decayed(*given)) or rates[-1][-1])
    for _ in range(3):
        assert mine.main(["--run_dir", str(run), *(["--anchors", "200"] if rates else [])]) == 0
        rates.append([])
        assert train.main(["--run_dir", str(run), "--decay_rounds", "2"]) == 0
    first, second, third = rates
    assert (np.diff(first + second) < 0).all() and first[0] == third[0] == 0.001
    assert first[-1] >= 0.00055 >= second[0] and second[-1] < 0.0003


def dropout_network(shape):
    inputs = keras.Input(shape)
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs)))
    return keras.Model(inputs, keras.layers.UnitNormalization()(keras.layers.Dense(16)(x)))


def unnormalised_network(shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.Dense(16)(keras.layers.Flatten()(inputs)))


@pytest.mark.parametrize("network", ["convolutional", "dropout"])
def test_fresh_triplets_are_counted_in_training_mode_and_nothing_moves(mined, network):
    """Mined in inference mode, so the share is below 1 where batch normalisation or dropout act."""
    corpus = records.open_corpus(mined)
    manifest = records.open_triplets(mined, 0, corpus)
    keras.utils.set_random_seed(0)
    model = (
        dropout_network((8, 8, 1))
        if network == "dropout"
        else records.load_checkpoint(records.checkpoint_path(mined, 0))
    )
    before = records.checkpoint_digest(model)
    batches = data.triplet_batches(records.manifest_path(mined, 0).parent, manifest, (8, 8, 1), 128, seed=0)
    strategy = tf.distribute.get_strategy()
    share = step.Step(model, None, "triplet", manifest["margin"], strategy, batches.element_spec).active(batches)
    assert 0 < share < 1
    assert [np.abs(v.numpy()).sum() for v in model.trainable_variables]
    if network == "convolutional":
        assert records.checkpoint_digest(model) == before


def test_ones_own_network_by_import_path(digits, tmp_path):
    run = shutil.copytree(digits, tmp_path / "run")
    shutil.rmtree(run / "rounds")
    assert train.main(["--run_dir", str(run), "--init", "--model", "test_trainer:dropout_network"]) == 0
    assert mine.main(["--run_dir", str(run)]) == 0
    assert train.main(["--run_dir", str(run)]) == 0
    with pytest.raises(InputError, match="test_trainer:nothing"):
        models.by_path("test_trainer:nothing")
    with pytest.raises(InputError, match="expected a function"):
        models.by_path("test_trainer:READER_OF_NOTHING")


READER_OF_NOTHING = 3


def test_nan_embeddings_name_the_checkpoint_and_the_rows(fresh_run):
    path = records.checkpoint_path(fresh_run, 0)
    model = records.load_checkpoint(path)
    model.layers[-2].bias.assign(np.full(64, np.nan))
    train.save_checkpoint(model, path)
    with pytest.raises(
        InputError, match=r"model\.keras: 1258 of 1258 embeddings .* rows \[0, 1, 2, 3, 4\], the first is NaN"
    ):
        mine.main(["--run_dir", str(fresh_run)])


def test_vectors_train_too(tmp_path):
    from pipeline import ingest

    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(24), 10)
    centres = rng.standard_normal((24, 12))
    np.savez(tmp_path / "v.npz", vectors=centres[labels] + rng.standard_normal((240, 12)), labels=labels)
    run = tmp_path / "run"
    assert ingest.main(["--run_dir", str(run), "--source", f"arrays:{tmp_path / 'v.npz'}"]) == 0
    assert train.main(["--run_dir", str(run), "--online", "--steps", "20"]) == 0
    assert mine.main(["--run_dir", str(run), "--margin", "0.5", "--pack_rows", "3"]) == 0
    assert train.main(["--run_dir", str(run)]) == 0
    assert evaluate.main(["--run_dir", str(run), "--round", "0", "1", "--pixels"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--online"], "round 0 is mined already"),
        (["--model", "a:b"], "--model goes with --init"),
        (["--learning_rate", "-1"], "--learning_rate must be above 0"),
        (["--steps", "3"], "--steps does nothing here"),
        (["--decay_rounds", "0"], "--decay_rounds must be above 0"),
        (["--stored_rows", "-1"], "--stored_rows must be 0 or more"),
        (["--online", "--stored_rows", "9"], "--stored_rows does nothing here"),
        (["--margin", "0.7"], "--margin does nothing here"),
        (["--online", "--epochs", "2", "--steps", "5"], "--epochs does nothing with --steps"),
        (["--init", "--epochs", "2"], "--epochs does nothing with --init"),
        (["--batch_rows", "100"], "less than a pack's 128 rows"),
        (["--init", "--model", "a:b"], "is there already"),
    ],
)
def test_wrong_calls_of_the_trainer_are_refused(mined, arguments, message):
    with pytest.raises(InputError, match=message):
        train.main(["--run_dir", str(mined), *arguments])


def test_nothing_to_train_and_no_corpus(fresh_run, tmp_path):
    with pytest.raises(InputError, match="nothing is mined"):
        train.main(["--run_dir", str(fresh_run)])
    with pytest.raises(InputError, match="corpus.json is missing"):
        train.main(["--run_dir", str(tmp_path / "nowhere")])


def test_another_checkpoint_than_the_round_was_mined_with_is_refused(mined, tmp_path):
    run = shutil.copytree(mined, tmp_path / "run")
    path = records.checkpoint_path(run, 0)
    model = records.load_checkpoint(path)
    model.layers[-2].bias.assign(np.ones(64))
    train.save_checkpoint(model, path)
    with pytest.raises(InputError, match="round 0 was mined with"):
        train.main(["--run_dir", str(run)])
    with pytest.raises(InputError, match="mined already with checkpoint"):
        mine.main(["--run_dir", str(run)])
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match="not a Keras model"):
        train.main(["--run_dir", str(run)])


def test_a_broken_triplet_shard_is_refused(mined, tmp_path):
    run = shutil.copytree(mined, tmp_path / "run")
    [shard] = (run / "rounds/0000/triplets").glob("*.tfrecord")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="is not what .*triplets.json lists"):
        train.main(["--run_dir", str(run)])
    shard.unlink()
    with pytest.raises(InputError, match="is missing"):
        train.main(["--run_dir", str(run)])


def test_retrieval_equals_loops():
    rng = np.random.default_rng(0)
    label = np.sort(rng.integers(0, 12, 70))
    label[-1] = 99  # alone: no query, still a candidate
    embeddings = np.rint(unit(rng, 70, 3) * 8).astype(np.float32) / 8  # ties
    d = 2 - 2 * embeddings.astype(np.float64) @ embeddings.T.astype(np.float64)
    recall, precision, queries = {1: 0, 5: 0, 10: 0}, 0.0, 0
    for q in range(70):
        order = sorted((n for n in range(70) if n != q), key=lambda n: (d[q, n], n))
        good = [label[n] == label[q] for n in order]
        r = sum(good)
        if r:
            queries += 1
            precision += sum(sum(good[: i + 1]) / (i + 1) for i in range(r) if good[i]) / r
            for k in recall:
                recall[k] += any(good[:k])
    result = evaluate.retrieval(embeddings, label)
    assert result["queries"] == queries
    assert abs(result["map_at_r"] - precision / queries) < 1e-12
    for k in recall:
        assert result[f"recall_at_{k}"] == recall[k] / queries
    assert abs(result["mean_distance"] - d[~np.eye(70, dtype=bool)].mean()) < 1e-6


def test_embeddings_do_not_depend_on_the_call(digits):
    corpus = records.open_corpus(digits)
    split = corpus.split("train")
    embedder = Embedder(records.checkpoint_path(digits, 0), corpus)
    stored = split.read(np.arange(300))
    whole = embedder(stored)
    np.testing.assert_array_equal(whole[:256], embedder(stored[:256]))
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=0.01)
    assert len(embedder([])) == 0


def test_the_trainer_never_imports_beam_and_the_miner_never_the_trainer():
    code = "import sys; import {0}; assert not any(m.split('.')[0] == {1!r} for m in sys.modules), {1!r}"
    for module, absent in (
        ("trainer.train, trainer.evaluate", "apache_beam"),
        ("pipeline.mine, pipeline.ingest, pipeline.rounds", "trainer"),
        ("pipeline.selection", "tensorflow"),
        ("pipeline.selection, pipeline.records", "apache_beam"),
    ):
        done = subprocess.run([sys.executable, "-c", code.format(module, absent)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def two_outputs(shape):
    inputs = keras.Input(shape)
    flat = keras.layers.Flatten()(inputs)
    return keras.Model(inputs, [keras.layers.Dense(4)(flat), keras.layers.Dense(4)(flat)])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("json:dumps", "returned a str"),
        ("test_trainer:two_outputs", r"expected \[batch, dim\]"),
        ("test_trainer:unnormalised_network", "not L2-normalised"),
        ("trainer.models:dense", "the network gives"),
    ],
)
def test_a_network_that_cannot_be_mined_with_is_refused_at_once(digits, tmp_path, model, message):
    run = shutil.copytree(digits, tmp_path / "run")
    shutil.rmtree(run / "rounds")
    with pytest.raises(InputError, match=message):
        train.main(["--run_dir", str(run), "--init", "--model", model])
    assert not records.checkpoint_path(run, 0).exists()


def test_a_damaged_optimizer_starts_anew(mined, tmp_path, caplog):
    run = shutil.copytree(mined, tmp_path / "run")
    (records.checkpoint_path(run, 0).parent / "optimizer.npz").write_bytes(b"PK half")
    assert train.main(["--run_dir", str(run)]) == 0
    assert "optimizer.npz is damaged" in caplog.text


def test_a_damaged_corpus_is_refused_by_warm_up_and_evaluation(digits, tmp_path):
    run = shutil.copytree(digits, tmp_path / "run")
    for name in ("train", "eval"):
        [path] = (run / "corpus").glob(f"{name}-*.index.npy")
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="train-.*index.npy is not what"):
        train.main(["--run_dir", str(run), "--online", "--steps", "2"])
    with pytest.raises(InputError, match="eval-.*index.npy is not what"):
        evaluate.main(["--run_dir", str(run)])


def test_wrong_calls_of_rounds_and_evaluate_are_refused(digits):
    with pytest.raises(InputError, match="--mine"):
        rounds.main(["--run_dir", str(digits), "--mine", "'--margin"])
    with pytest.raises(InputError, match="--rounds must be at least 1"):
        rounds.main(["--run_dir", str(digits), "--rounds", "0"])
    with pytest.raises(InputError, match="round 7 has no checkpoint"):
        evaluate.main(["--run_dir", str(digits), "--round", "7"])


def test_untrained_statistics_have_seen_the_corpus(digits):
    """Without that, an untrained network's embeddings all but coincide in inference mode, and round 0 mines noise."""
    corpus = records.open_corpus(digits)
    assert evaluate.evaluate(digits, 0, corpus, "validation")["mean_distance"] > 0.15


def test_images_are_decoded_once_while_they_fit(mined, monkeypatch):
    corpus = records.open_corpus(mined)
    shape, asked = (8, 8, 1), []

    def counted(features, payload, input_shape):
        tf.numpy_function(lambda n: asked.append(int(n)), [tf.size(payload)], [])
        return decode(features, payload, input_shape)

    packs = read_packs(mined)
    plain = {}
    for pack in packs:
        images = decode(corpus.features, tf.constant(pack["image"]), shape).numpy()
        plain |= zip(pack["row"].tolist(), images, strict=True)
    monkeypatch.setattr(data, "decode", counted)
    monkeypatch.setattr(data, "_decoder", data._decoder.__wrapped__)
    for room in (len(plain), 5):
        monkeypatch.setattr(data, "DECODED_BYTES", room * 4 * 64)
        decoded = data.Decoded(corpus.features, shape)
        asked.clear()
        for _ in range(2):
            for pack in packs:
                expected = np.stack([plain[row] for row in pack["row"].tolist()])
                found = decoded(tf.constant(pack["row"]), tf.constant(pack["image"]))
                np.testing.assert_array_equal(found, expected)
        rows = 2 * sum(len(pack["row"]) for pack in packs)
        assert sum(asked) == len(plain) if room == len(plain) else len(plain) < sum(asked) < rows


def test_no_autotuning_thread_is_waited_for_at_the_end_of_an_epoch(mined):
    corpus = records.open_corpus(mined)
    manifest = records.open_triplets(mined, 0, corpus)
    batches = data.triplet_batches(records.manifest_path(mined, 0).parent, manifest, (8, 8, 1), 128, seed=0)
    assert batches.options().autotune.enabled is False
    assert data.online_batches(corpus, (8, 8, 1), 2, 2, 1, seed=0).options().autotune.enabled is False


def test_a_rounds_decoded_images_go_with_it(mined, tmp_path, monkeypatch):
    """One process trains all rounds, and TensorFlow keeps what a numpy_function refers to."""
    made = []
    monkeypatch.setattr(train, "Decoded", lambda *arguments: made.append(data.Decoded(*arguments)) or made[-1])
    run = shutil.copytree(mined, tmp_path / "run")
    assert train.main(["--run_dir", str(run)]) == 0
    [decoded] = made
    assert not decoded._kept


def test_the_loss_of_an_epoch_is_that_of_steps_with_triplets():
    epoch = {"batches": 4, "steps": 4, "idle": 2, "triplets": 10, "sums": [0.6, 5.0, 4.0, 8.0, 2.0]}
    told = train.summary_of_epoch(epoch)
    assert told["loss"] == 0.3 and told["stored_rows_loss"] == 0.5 and told["active_share"] == 0.5
