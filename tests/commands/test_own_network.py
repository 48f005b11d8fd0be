"""One's own networks: whatever Keras can build goes through all commands."""

from pathlib import Path

import keras
import numpy as np
import own_networks
import pytest
from conftest import copied, edit

from pipeline import Corpus, mine, mine_corpus
from pipeline.embedding.network import Extras, load_network
from pipeline.errors import InputError
from pipeline.files import manifests
from pipeline.files.layout import Run
from trainer import evaluate, init, train, train_newest, warmup
from trainer.options import TrainOptions

LETTERS = ["--model", "own_networks:two_inputs", "--preprocess", "own_networks:letters"]


def all_commands(run_dir: Path, *network: str) -> Run:
    """Initialises, warms up, mines, trains and evaluates."""
    where = ["--run_dir", str(run_dir)]
    assert init.main([*where, *network]) == 0
    assert warmup.main([*where, "--steps", "3", "--learning_rate", "1e-4"]) == 0
    assert mine.main([*where, "--anchors", "200", "--seed", "1"]) == 0
    assert train.main([*where, "--learning_rate", "1e-4"]) == 0
    assert evaluate.main([*where, "--round", "1", "--split", "train"]) == 0
    return Run(run_dir)


@pytest.mark.parametrize("name", ["subclassed", "sequential", "open_sizes"])
def test_networks_of_any_kind(bare, name):
    run = all_commands(bare, "--model", f"own_networks:{name}")
    first, second = (load_network(run.round(number).checkpoint) for number in (0, 1))
    assert first.extras == second.extras and first.digest() != second.digest()
    assert first.extras.shape == ((8, 8, 1) if name == "open_sizes" else ())
    assert first.extras.imports == (() if name == "sequential" else ("own_networks",))
    assert [type(layer).__name__ for layer in second.model.layers].count("UnitNormalization") == 1


def test_several_inputs_that_a_function_makes(texts, tmp_path):
    run = all_commands(copied(texts, tmp_path), *LETTERS, "--augment", "own_networks:noisy")
    extras = load_network(run.round(1).checkpoint).extras
    assert extras == Extras(preprocess="own_networks:letters", augment="own_networks:noisy")


def test_the_digest_covers_the_module_that_preprocesses(texts, tmp_path, monkeypatch):
    run_dir = copied(texts, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source = Path(own_networks.__file__).read_text()
    (tmp_path / "copied_networks.py").write_text(source.replace('"own_networks"', '"copied_networks"'))
    assert init.main(["--run_dir", str(run_dir), "--model", LETTERS[1], "--preprocess", "copied_networks:letters"]) == 0
    path = Run(run_dir).round(0).checkpoint
    before = load_network(path).digest()
    manifests.write(path.parent / "network.json", Extras(preprocess="own_networks:letters"))
    assert load_network(path).digest() != before


def test_augmentation_is_seen_in_training_alone(bare):
    assert init.main(["--run_dir", str(bare), "--augment", "own_networks:one_colour"]) == 0
    assert mine.main(["--run_dir", str(bare)]) == 0  # would find nothing if all images were black
    metrics = train_newest(bare).metrics
    assert metrics is not None and metrics.epochs[0].d_ap == pytest.approx(0, abs=1e-6)


def test_a_model_in_memory_that_takes_what_a_function_makes(texts, tmp_path):
    keras.utils.set_random_seed(0)
    corpus, long = Corpus.open(copied(texts, tmp_path)), own_networks.two_inputs(())
    model = keras.Model(long.input, keras.layers.UnitNormalization()(long.output))
    with pytest.raises(InputError, match="packs that are spread take no positives"):
        mine_corpus(corpus, model, preprocess="own_networks:letters", packs="spread", positives=2)
    assert not [*Run(corpus.run_dir).round(0).checkpoint.parent.iterdir()]  # network.json: the next model's too
    mined = mine_corpus(corpus, model, preprocess="own_networks:letters", pack_rows=3)
    assert mined.triplets and mine_corpus(corpus, model, preprocess="own_networks:letters", pack_rows=3).round == 0
    assert train_newest(mined.run_dir, TrainOptions(learning_rate=1e-4)).metrics is not None


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (["--model", "own_networks:two_inputs"], "takes float32 .*float32 .*give a --preprocess"),
        ([*LETTERS[:3], "own_networks:hollow"], "own_networks:two_inputs cannot take a row of the corpus"),
        ([*LETTERS[:3], "own_networks:none"], "own_networks:none is no name, expected package.module:function"),
        (["--import", "no_such_module"], "--import names the module no_such_module: No module named"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(texts, tmp_path, network, message):
    run_dir = copied(texts, tmp_path)
    with pytest.raises(InputError, match=message):
        init.main(["--run_dir", str(run_dir), *network])
    assert not Run(run_dir).round(0).checkpoint.exists()


def test_a_class_that_another_process_does_not_know_is_named(bare):
    with pytest.raises(InputError, match="not loaded again.*class 'Unregistered'. Put @.*--import"):
        init.main(["--run_dir", str(bare), "--model", "own_networks:unregistered"])
    assert not Run(bare).round(0).checkpoint.exists()


DEADLY = """
import multiprocessing, os, signal
import keras

@keras.saving.register_keras_serializable()
class Deadly(keras.layers.Flatten):
    pass

def network(shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.UnitNormalization()(Deadly()(inputs)))

if multiprocessing.parent_process():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_fresh_process_that_is_killed_is_named_as_a_lack_of_memory(bare, tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OSError, match="load --model deadly:network again was killed, most likely for lack of mem"):
        init.main(["--run_dir", str(bare), "--model", "deadly:network"])
    assert not Run(bare).round(0).checkpoint.exists()


def test_a_module_that_is_gone_is_named(bare, capsys):
    assert init.main(["--run_dir", str(bare), "--model", "own_networks:subclassed"]) == 0
    path = Run(bare).round(0).checkpoint.parent / "network.json"
    edit(path, imports=["gone"])
    with pytest.raises(InputError, match="network.json names the module gone"):
        mine.main(["--run_dir", str(bare)])


def test_equal_seeds_augment_equally(texts):
    inputs = {"letters": np.zeros((2, 26), np.float32)}
    one, two, other = (own_networks.noisy(inputs, (3, number))["letters"] for number in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


class Watching(keras.callbacks.Callback):
    """Counts what it is told, and ends training after an epoch."""

    def __init__(self):
        super().__init__()
        self.steps, self.epochs = 0, []

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(logs["loss"])
        self.model.stop_training = True


def test_callbacks_see_every_step_and_can_end_a_round(small_mined, tmp_path):
    watching = Watching()
    metrics = train_newest(copied(small_mined, tmp_path), TrainOptions(epochs=3), callbacks=[watching]).metrics
    assert metrics.stopped_by == "callback" and len(metrics.epochs) == 1
    assert watching.steps == metrics.steps and watching.epochs == [metrics.epochs[0].loss]


@pytest.mark.parametrize("optimizer", ["sgd", '{"class_name": "AdamW", "config": {"gradient_accumulation_steps": 2}}'])
def test_any_optimizer_of_keras(small_mined, tmp_path, optimizer):
    run_dir = copied(small_mined, tmp_path)
    assert train.main(["--run_dir", str(run_dir), "--optimizer", optimizer]) == 0
    first, second = (load_network(Run(run_dir).round(number).checkpoint) for number in (0, 1))
    assert first.digest() != second.digest()


def test_layers_learn_at_their_own_rates(small_mined, tmp_path):
    run_dir = copied(small_mined, tmp_path)
    before = load_network(Run(run_dir).round(0).checkpoint).model
    frozen, other = [layer.name for layer in before.layers if layer.trainable_variables][:2]
    assert train.main(["--run_dir", str(run_dir), "--layer_rates", f"{frozen}:0,{other}:0.5"]) == 0
    after = load_network(Run(run_dir).round(1).checkpoint).model

    def stayed(name):
        return np.array_equal(*(model.get_layer(name).get_weights()[0] for model in (before, after)))

    assert stayed(frozen) and not stayed(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "nothing"], "optimizer 'nothing' is none of Keras"),
        (["--optimizer", "{"], "optimizer '{' is none of Keras"),
        (["--layer_rates", "nowhere:0.1"], "the network has no layer 'nowhere'; it has"),
    ],
)
def test_wrong_settings_are_refused(small_mined, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        train.main(["--run_dir", str(copied(small_mined, tmp_path)), *arguments])
