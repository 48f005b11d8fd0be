"""What an interrupted training goes on from; when a stop is raised."""

import os
import signal
from dataclasses import dataclass, field

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import InputError
from pipeline.process.commands import postponed_stop
from trainer.state import Resumable, restore_optimizer, save_optimizer


@dataclass(kw_only=True)
class Progress:
    losses: list[float] = field(default_factory=list)


def network():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dropout(0.5)(keras.layers.Dense(3)(inputs)))


def trained(model, steps):
    """An Adam that has moved the model, if steps are not 0."""
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    for step in range(steps):
        optimizer.apply(
            [np.full(v.shape, step + 1.0, np.float32) for v in model.trainable_variables], model.trainable_variables
        )
    return optimizer


def state_of(path, model, optimizer, key="key", more=()):
    return Resumable(path, key, model, optimizer, Progress(), 10.0, more)


def test_everything_comes_back_the_state_of_random_generators_too(tmp_path):
    model, memory = network(), tf.Variable(np.arange(6.0))
    optimizer = trained(model, 3)
    model(np.ones((2, 4)), training=True)  # Dropout's generator moves
    state = state_of(tmp_path / "state.npz", model, optimizer, more=[memory])
    state.progress.losses += [0.1, 1 / 3]
    state.save()
    other, another = network(), tf.Variable(np.zeros(6))
    fresh = trained(other, 0)
    again = state_of(tmp_path / "state.npz", other, fresh, more=[another])
    assert again.restore() and again.progress == state.progress
    for kept, found in zip([*model.variables, *optimizer.variables], [*other.variables, *fresh.variables], strict=True):
        np.testing.assert_array_equal(kept.numpy(), found.numpy())
    np.testing.assert_array_equal(another, memory)
    np.testing.assert_array_equal(model(np.ones((2, 4)), training=True), other(np.ones((2, 4)), training=True))
    state.forget()
    assert not again.restore() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("spoilt", ["another key", "half", "empty", "text", "one is missing"])
def test_what_does_not_belong_is_left_aside(tmp_path, spoilt):
    path, model = tmp_path / "state.npz", network()
    state_of(path, model, trained(model, 1)).save()
    content = {"half": path.read_bytes()[: path.stat().st_size // 2], "empty": b"", "text": b"PK half"}
    if spoilt in content:
        path.write_bytes(content[spoilt])
    if spoilt == "one is missing":  # as one flipped bit in the list of a zip's members does
        with np.load(path) as arrays:
            kept = {name: arrays[name] for name in arrays.files[:-1]}
        np.savez(path, **kept)
    other = network()
    before = [variable.numpy() for variable in other.variables]
    again = state_of(path, other, trained(other, 0), "other" if spoilt == "another key" else "key")
    assert not again.restore() and again.progress == Progress()
    for variable, value in zip(other.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_an_optimizer_is_taken_up_for_its_own_checkpoint_only(tmp_path):
    path, model = tmp_path / "optimizer.npz", network()
    optimizer = trained(model, 2)
    save_optimizer(optimizer, path, "digest")
    fresh = keras.optimizers.Adam()
    restore_optimizer(fresh, model, path, "digest")
    assert int(fresh.iterations) == 2
    for other in (keras.optimizers.RMSprop(), keras.optimizers.Adam(use_ema=True), keras.optimizers.Adamax()):
        restore_optimizer(other, model, path, "digest")
        assert int(other.iterations) == 0
    with pytest.raises(InputError, match="optimizer.npz belongs to checkpoint digest, not to other beside it"):
        restore_optimizer(fresh, model, path, "other")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="optimizer.npz is damaged: .* Restore it, or remove it"):
        restore_optimizer(fresh, model, path, "digest")
    path.unlink()
    fresh = keras.optimizers.Adam()
    restore_optimizer(fresh, model, path, "digest")
    assert int(fresh.iterations) == 0


def test_a_stop_waits_until_the_loop_asks_and_is_then_raised():
    done, saved = [], []
    with pytest.raises(KeyboardInterrupt), postponed_stop(lambda: saved.append(len(done))) as stop_if_asked:
        for step in range(5):
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            done.append(step)
            stop_if_asked()
    assert done == [0, 1, 2] and saved == [3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stop_after_the_last_step_is_not_forgotten():
    saved, finished = [], []
    with pytest.raises(KeyboardInterrupt):
        with postponed_stop(lambda: saved.append(1)) as stop_if_asked:
            stop_if_asked()
            os.kill(os.getpid(), signal.SIGINT)
            finished.append("all is written")
        finished.append("the next step of rounds")
    assert not saved and finished == ["all is written"]


def test_an_error_is_told_though_a_stop_was_asked_for():
    with pytest.raises(ValueError, match="no number"), postponed_stop(lambda: None):
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("no number")
