"""What options refuse, recipes, and the learning rate."""

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.mining.options import MiningOptions
from trainer.loop import Schedule, Totals
from trainer.options import TrainOptions, WarmupOptions
from trainer.recipe import read_recipe


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (WarmupOptions, {"steps": 0}), (WarmupOptions, {"epochs": 0}), (WarmupOptions, {"margin": 0.0}),
        (WarmupOptions, {"batch_rows": -1}), (WarmupOptions, {"learning_rate": -1.0}),
        (WarmupOptions, {"temperature": 0.0}), (WarmupOptions, {"memory_rows": 127}),
        (WarmupOptions, {"memory_start": 1.0}),
        (TrainOptions, {"epochs": 0}), (TrainOptions, {"batch_rows": 0}), (TrainOptions, {"learning_rate": 0.0}),
        (TrainOptions, {"temperature": 0.0}), (TrainOptions, {"memory_rows": -1}), (TrainOptions, {"min_active": 1.0}),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(kind, wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must be .*; found {value}"):
        kind(**wrong)


def test_recipes_that_ship():
    best, plain = read_recipe("best"), read_recipe("plain")
    assert best.warmup and best.warmup.margin == best.mining.margin == 1.0 and best.train.memory_rows == 10_000
    assert (best.packing.packs, best.packing.pack_rows, best.packing.fill) == ("spread", 32, 2)
    assert plain.warmup == WarmupOptions() and plain.mining == MiningOptions() and plain.train == TrainOptions()


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('[mining]\nnegatives = "semi-hard:3,hard:1"\nmargin = 1\n[train]\nepochs = 2\n')
    recipe = read_recipe(str(path))
    assert recipe.warmup is None and recipe.train == TrainOptions(epochs=2)
    assert recipe.mining == MiningOptions(negatives=(("semi-hard", 3.0), ("hard", 1.0)), margin=1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trian]\nepochs = 2", r"there is no \[trian\]; there are warmup, mining, packing, train"),
        ("epochs = 2", r"there is no \[epochs\]"),
        ("train = 2", r"write \[train\] above them"),
        ("[train]\nepoch = 2", "no setting train.epoch; there are epochs, batch_rows"),
        ("[train.loss]\nname = 2", r"Expected `str`, got `object` - at `\$.train.loss`"),
        ("[train]\nepochs = 'two'", r"Expected `int`, got `str` - at `\$.train.epochs`"),
        ("[train]\nepochs = 0", "epochs must be above 0; found 0"),
        ("[mining]\nnegatives = 'sometimes'", "sometimes"),
        ("[mining]\nnegatives = 'hard:much'", "found 'hard:much'"),
        ("[packing]\nfill = 1", "fill must be at least 2"),
        ("[train", "Expected"),
    ],
)
def test_wrong_recipes_are_refused_with_their_file(tmp_path, text, message):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"(?s)--recipe {path}: .*{message}"):
        read_recipe(str(path))


def test_a_recipe_that_is_not_there_says_which_are():
    with pytest.raises(InputError, match=r"--recipe bset: .*bset.toml is not there.*one of best, plain"):
        read_recipe("bset")


def test_the_learning_rate_falls_over_a_stretch_of_rounds_and_begins_anew_with_the_next():
    shares = np.linspace(0, 1, 11)

    def rates(schedule, *rounds):
        return [schedule.learning_rate(0.01, number, share) for number in rounds for share in shares[:-1]]

    found = rates(Schedule(first=3, rounds=2), 3, 4)
    assert found[0] == 0.01 and (np.diff(found) < 0).all() and found[-1] < 0.0015
    np.testing.assert_allclose(found[10], 0.0055)  # halfway: between the full rate and a tenth of it
    assert rates(Schedule(first=5), 5)[0] == 0.01
    assert Schedule(first=5).learning_rate(0.01, 5, 1.0) == pytest.approx(0.001)
    assert Schedule(first=5).learning_rate(0.01, 6, 1.0) == pytest.approx(0.001)  # never below


def test_the_loss_of_an_epoch_is_that_of_steps_with_triplets():
    totals = Totals()
    for loss, triplets in ((0.2, 6), (0.0, 0), (0.4, 4), (0.0, 0)):
        sums = {
            "loss": loss,
            "active": triplets / 2,
            "d_ap": 0.4 * triplets,
            "d_an": 0.8 * triplets,
            "memory_loss": 0.5,
        }
        totals.add(sums, 1, triplets)
    epoch = totals.mean()
    assert (totals.batches, totals.steps, totals.idle, epoch.triplets) == (4, 4, 2, 10)
    assert epoch.loss == pytest.approx(0.3) and epoch.memory_loss == 0.5 and epoch.active_share == 0.5
    assert epoch.d_ap == pytest.approx(0.4) and epoch.d_an == pytest.approx(0.8)
