"""Training on a mined round: what it leaves, what ends it, and that a stop changes nothing."""

import json
import math
import shutil

import keras
import msgspec
import numpy as np
import pytest
from conftest import copied
from interrupted import ctrl_c_at
from logged import scalars

from pipeline import mine
from pipeline.corpus.corpus import Corpus
from pipeline.embedding.network import load_network
from pipeline.errors import InputError
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.mining.manifest import open_triplets
from pipeline.reporting.results import Metrics
from trainer import TripletLoss, init, train, triplet_dataset
from trainer.loop import Schedule, Totals, train_newest
from trainer.options import TrainOptions


@pytest.fixture
def run(small_mined, tmp_path):
    """A mined round to train on."""
    return copied(small_mined, tmp_path)


@pytest.fixture(scope="module")
def with_dropout(small, tmp_path_factory):
    """A round mined with a network that has Dropout and no batch normalisation. Not to be changed."""
    run_dir = copied(small, tmp_path_factory.mktemp("dropout"))
    shutil.rmtree(run_dir / "rounds")
    assert init.main(["--run_dir", str(run_dir), "--model", "networks:dropout"]) == 0
    assert mine.main(["--run_dir", str(run_dir)]) == 0
    return run_dir


def metrics_of(run_dir, number=0):
    return manifests.read(Run(run_dir).round(number).metrics, Metrics)


def outcome(run_dir, number=0):
    """Digest of the checkpoint that a round's training made, and the optimizer's variables."""
    made = Run(run_dir).round(number).next
    with np.load(made.optimizer) as file:
        return load_network(made.checkpoint).digest(), [file[name].tobytes() for name in file.files]


def test_a_round_is_trained_once_and_tells_what_came_of_it(run, capsys):
    assert train.main(["--run_dir", str(run), "--epochs", "2", "--json"]) == 0
    told, metrics, round = json.loads(capsys.readouterr().out), metrics_of(run), Run(run).round(0)
    manifest = open_triplets(round, Corpus.open(run))
    assert told["checkpoint"] == str(round.next.checkpoint) and told["metrics"]["steps"] == metrics.steps
    assert metrics.steps == metrics.total_steps == 2 * manifest.packs and metrics.image_passes == 2 * manifest.rows
    assert metrics.options == json.loads(msgspec.json.encode(TrainOptions(epochs=2))) and metrics.margin == 0.2
    assert metrics.stopped_by == "epochs"
    assert [epoch.triplets for epoch in metrics.epochs] == [manifest.triplets] * 2
    assert metrics.epochs[1].loss < metrics.epochs[0].loss
    assert metrics.checkpoint_digest == manifest.checkpoint_digest
    found = outcome(run)
    assert found[0] == metrics.next_checkpoint_digest != manifest.checkpoint_digest
    assert not (round.train / "state.npz").exists()
    (round.train / "state.npz").write_bytes(b"of a training that was killed right after its checkpoint was there")
    assert train.main(["--run_dir", str(run), "--epochs", "2"]) == 0
    assert "round 0 is trained already; nothing to do" in capsys.readouterr().out
    assert train.main(["--run_dir", str(run), "--layer_rates", "embedding:0.5"]) == 0
    others = "with epochs 2 (asked for 1), layer_rates [] (asked for [['embedding', 0.5]]). To train it anew remove"
    assert f"round 0 is trained already, {others} {round.next.checkpoint}." in capsys.readouterr().out
    assert outcome(run) == found and not (round.train / "state.npz").exists()


def test_the_learning_rate_falls_along_the_schedule(run):
    train_newest(run, TrainOptions(learning_rate=0.01), Schedule(first=-1, rounds=2))
    rates, steps = scalars(run, "learning_rate"), metrics_of(run).steps
    expected = [Schedule(first=-1, rounds=2).learning_rate(0.01, 0, step / steps) for step in range(steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert rates[0] == pytest.approx(0.0055) and len(scalars(run, "loss")) == steps


def test_stopped_and_started_again_it_ends_at_the_same_weights(run, tmp_path):
    """Within the first epoch and within the second; what the memory was renewed with comes back, too."""
    whole, options = copied(run, tmp_path / "whole"), TrainOptions(epochs=2, memory_rows=100)
    train_newest(whole, options)
    state = Run(run).round(0).train / "state.npz"
    for beginning in ("training round 0", "epoch 1:"):
        with pytest.raises(KeyboardInterrupt), ctrl_c_at(beginning):
            train_newest(run, options)
        assert state.exists() and not Run(run).round(0).next.checkpoint.exists()
    train_newest(run, options)
    assert outcome(run) == outcome(whole) and not state.exists()
    assert metrics_of(run).epochs == metrics_of(whole).epochs


def test_a_stop_while_a_round_ends_waits_until_its_checkpoint_is_there(run):
    with pytest.raises(KeyboardInterrupt), ctrl_c_at("epoch 1:"):
        train_newest(run, TrainOptions())
    assert train_newest(run, TrainOptions()).metrics is None


def test_with_dropout_training_is_the_same_each_time_and_after_a_stop(with_dropout, tmp_path):
    """Dropout draws its generator's seed as it is loaded: the seed must be set before that."""
    once, again, stopped = (copied(with_dropout, tmp_path / name) for name in ("once", "again", "stopped"))
    for run_dir in (once, again):
        train_newest(run_dir, TrainOptions())
    with pytest.raises(KeyboardInterrupt), ctrl_c_at("training round 0"):
        train_newest(stopped, TrainOptions())
    train_newest(stopped, TrainOptions())
    assert outcome(once) == outcome(again) == outcome(stopped)


def test_a_round_ends_when_too_few_triplets_are_active(run, capsys):
    assert train.main(["--run_dir", str(run), "--epochs", "9", "--min_active", "0.99"]) == 0
    metrics = metrics_of(run)
    assert metrics.stopped_by == "min_active" and len(metrics.epochs) == 1 and metrics.epochs[0].active_share < 0.99
    assert "ended after epoch 1: too few triplets are still active (--min_active)" in capsys.readouterr().out


class Called(keras.callbacks.Callback):
    """Writes down what it is called with, and ends training in a batch of the second epoch."""

    def __init__(self, stop):
        super().__init__()
        self.stop, self.calls = stop, []

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("epoch begins", epoch))

    def on_train_batch_begin(self, batch, logs=None):
        self.calls.append(("begins", batch))

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(("ends", batch))
        self.model.stop_training = ("epoch begins", 1) in self.calls and batch == self.stop

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("epoch ends", epoch))


@pytest.mark.parametrize("stop", [0, 1])
def test_callbacks_are_called_as_fit_calls_them_and_end_a_round_in_a_batch(small_run, stop):
    assert mine.main(["--run_dir", str(small_run), "--pack_rows", "32", "--fill", "2"]) == 0
    ours, theirs, round = Called(stop), Called(stop), Run(small_run).round(0)
    packs = open_triplets(round, Corpus.open(small_run)).packs
    model = load_network(round.checkpoint).model
    model.compile("sgd", TripletLoss(0.2))
    batches = triplet_dataset(small_run, batch_size=32)
    model.fit(batches, epochs=3, shuffle=False, verbose=0, callbacks=[theirs])
    metrics = train_newest(small_run, TrainOptions(epochs=3), callbacks=[ours]).metrics
    assert ours.calls == theirs.calls and ours.calls[-2:] == [("ends", stop), ("epoch ends", 1)]
    assert packs > 2 and metrics.steps == packs + stop + 1 and metrics.stopped_by == "callback"
    assert metrics.epochs[1].triplets < metrics.epochs[0].triplets
    assert Run(small_run).round(1).checkpoint.exists()


def test_an_epoch_that_ends_before_its_first_triplet_has_a_mean():
    totals = Totals()
    totals.add(dict.fromkeys(totals.sums, 0.0), batches=1, triplets=0)
    assert totals.mean().loss == totals.mean().active_share == totals.mean().d_ap == 0


@pytest.mark.parametrize("options", ["contrastive", "semi-hard", "semi-hard --memory_rows 100"])
def test_another_loss_trains(run, options):
    assert train.main(["--run_dir", str(run), "--epochs", "2", "--loss", *options.split()]) == 0
    metrics = metrics_of(run)
    assert metrics.options["loss"] == options.split()[0] and metrics.epochs[-1].loss < metrics.epochs[0].loss


def test_a_memory_adds_its_loss(run, capsys):
    assert train.main(["--run_dir", str(run), "--memory_rows", "100", "--epochs", "2"]) == 0
    first, second = metrics_of(run).epochs
    assert 0 < second.memory_loss < first.memory_loss
    assert f"loss of the memory {second.memory_loss:.3f}" in capsys.readouterr().out
    assert len(scalars(run, "memory_loss")) == metrics_of(run).steps


def test_lone_triplets_share_batches(small_run):
    assert mine.main(["--run_dir", str(small_run), "--pack_rows", "3", "--anchors", "100"]) == 0
    assert train.main(["--run_dir", str(small_run)]) == 0
    metrics = metrics_of(small_run)
    assert metrics.steps == math.ceil(metrics.image_passes / 126) > 1


def test_a_loss_that_is_no_number_ends_it_at_once(run):
    with pytest.raises(InputError, match=r"the loss became nan in step \d+, .* Lower --learning_rate"):
        train.main(["--run_dir", str(run), "--learning_rate", "1e38", "--epochs", "50"])
    assert not Run(run).round(0).next.checkpoint.exists()
    assert not (Run(run).round(0).train / "state.npz").exists()


def test_an_optimizer_with_a_learning_rate_of_its_own_is_refused(run):
    optimizer = '{"class_name": "AdamW", "config": {"learning_rate": 0.5}}'
    with pytest.raises(InputError, match=r"AdamW.* has a learning_rate, .* Leave it out, and give --learning_rate"):
        train.main(["--run_dir", str(run), "--optimizer", optimizer])
    assert not Run(run).round(0).next.checkpoint.exists()


def test_packs_that_a_batch_cannot_hold_are_refused(run):
    with pytest.raises(InputError, match="--batch_rows 100 is less than a pack's 128 rows"):
        train.main(["--run_dir", str(run), "--batch_rows", "100"])


def test_nothing_to_train_and_no_corpus(small_run, tmp_path):
    with pytest.raises(InputError, match="nothing is mined"):
        train.main(["--run_dir", str(small_run)])
    with pytest.raises(InputError, match="corpus.json is missing"):
        train.main(["--run_dir", str(tmp_path / "nowhere")])


def test_another_checkpoint_than_the_round_was_mined_with_is_refused(run):
    path = Run(run).round(0).checkpoint
    network = load_network(path)
    network.model.layers[-2].bias.assign(np.ones(64))
    network.save(path)
    with pytest.raises(InputError, match="round 0 was mined with"):
        train.main(["--run_dir", str(run)])
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match="model.keras was changed since it was written: model.sha256 beside it"):
        train.main(["--run_dir", str(run)])
    path.with_suffix(".sha256").unlink()
    with pytest.raises(InputError, match="not a Keras model"):
        train.main(["--run_dir", str(run)])


def test_a_broken_triplet_shard_is_refused(run):
    [shard] = Run(run).round(0).triplets.glob("*.tfrecord")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="is not what .*triplets.json lists"):
        train.main(["--run_dir", str(run)])
    shard.unlink()
    with pytest.raises(InputError, match="is missing"):
        train.main(["--run_dir", str(run)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rate", "-1"], "learning_rate must be above 0; found -1"),
        (["--memory_rows", "-1"], "memory_rows must be 0 or more; found -1"),
        (["--loss", "none"], "none"),
        (["--epoch", "2"], "--epoch"),
    ],
)
def test_wrong_options_end_with_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        train.main(["--run_dir", "nowhere", *arguments])
    assert ended.value.code == 2 and message in capsys.readouterr().err
