"""The arms: opponents that need no mining, what this project does, and controls; each as a recipe and a budget.

A budget is a cost in image passes: an image forwarded and backwarded counts one, an image that mining only forwards a
third. What an arm spends on mining it cannot spend on training. Warm-up passes count.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.mining.options import MiningOptions
from pipeline.packs.packs import PackOptions
from trainer.options import TrainOptions, WarmupOptions
from trainer.recipe import Recipe, read_recipe

FORWARD = 1 / 3  # of a training pass: what a forward pass of mining costs
Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """fixed: settings that make the arm. grid: what is tuned, each with the values to try, the first to begin with; the
    learning rates come from the corpus.
    """

    name: str
    fixed: Settings
    grid: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class InBatch(Arm):
    """Settings are WarmupOptions."""

    def options(self, settings: Settings, passes: float) -> WarmupOptions:
        whole = {"batch_rows": 128, **self.fixed, **settings}
        return WarmupOptions(**whole, steps=max(1, round(passes / whole["batch_rows"])))


@dataclass(frozen=True, kw_only=True)
class Mined(Arm):
    """Settings: learning_rate, memory_rows and temperature of training, margin of mining, rounds, warmup (its share of
    the passes).

    The warm-up has the settings that in-batch training does best with. control: the packs are replaced by as many rows
    that no embedding has a part in: `random`, of randomly drawn classes; `even`, every row once in random company.
    rows_an_anchor: about how many rows of its packs an anchor brings in. is_free: the budget is of training alone.
    """

    recipe: Recipe = field(default_factory=lambda: read_recipe("best"))
    rows_an_anchor: int = 1
    control: str = ""
    is_free: bool = False

    def split(self, settings: Settings, budget: float, rows: int) -> tuple[float, float, int]:
        """Passes of the warm-up, passes of a round, and how often the round's packs are trained on for these.

        rows: of the train split. Packs that are spread cost a forward pass of the rows that they hold; a scan, of all.
        """
        rounds, warmup, epochs = settings["rounds"], settings["warmup"], 0
        of_round = math.inf
        while of_round > epochs * rows + 1:
            epochs += 1
            if self.is_free:
                training = budget
            elif self.recipe.packing.packs == "spread":
                training = budget / (1 + (1 - warmup) * FORWARD / epochs)
            else:
                training = budget - rounds * rows * FORWARD
            of_round = (1 - warmup) * training / rounds
        return warmup * training, of_round, epochs

    def mining(self, settings: Settings, anchors: int, seed: int) -> tuple[MiningOptions, PackOptions]:
        return MiningOptions(margin=settings["margin"], anchors=anchors, seed=seed), self.recipe.packing

    def training(self, settings: Settings, epochs: int, seed: int) -> TrainOptions:
        taken = ("learning_rate", "memory_rows", "temperature", "loss", "batch_rows")
        return TrainOptions(epochs=epochs, seed=seed, **{name: settings[name] for name in taken if name in settings})


MARGINS = (1.0, 0.5, 0.2)
TEMPERATURES = (0.07, 0.05, 0.1, 0.15, 0.2)
OPPONENTS = {
    "semi-hard": InBatch(
        name="in-batch, semi-hard triplets", fixed={"loss": "semi-hard"},
        grid={"margin": MARGINS, "batch_rows": (128, 256, 64, 32)},
    ),
    "batch-hard": InBatch(
        name="in-batch, batch-hard triplets", fixed={"loss": "batch-hard"},
        grid={"margin": MARGINS, "batch_rows": (128, 256, 64, 32)},
    ),
    "large": InBatch(
        name="in-batch, triplets, 512 to 1,024 rows", fixed={},
        grid={"margin": MARGINS, "batch_rows": (512, 1024), "loss": ("semi-hard", "batch-hard", "semi-hard+n-pair")},
    ),
    "n-pair": InBatch(
        name="in-batch, N-pair", fixed={"loss": "n-pair"},
        grid={"temperature": TEMPERATURES, "batch_rows": (128, 256, 64, 32)},
    ),
    "both": InBatch(
        name="in-batch, semi-hard triplets and N-pair", fixed={"loss": "semi-hard+n-pair"},
        grid={"temperature": TEMPERATURES, "margin": MARGINS, "batch_rows": (128, 256, 64, 32)},
    ),
    "xbm-triplet": InBatch(
        name="cross-batch memory, triplets", fixed={},
        grid={
            "margin": MARGINS, "memory_rows": (4000, 12_000), "memory_start": (0.25, 0.5),
            "loss": ("semi-hard", "batch-hard"),
        },
    ),
    "xbm-n-pair": InBatch(
        name="cross-batch memory, N-pair", fixed={"loss": "n-pair"},
        grid={
            "temperature": TEMPERATURES, "memory_rows": (4000, 12_000), "memory_start": (0.25, 0.5),
            "batch_rows": (128, 64, 32),
        },
    ),
}  # fmt: skip
OURS = {
    "packs": Mined(
        name="mined packs with memory", fixed={"margin": 1.0, "memory_rows": 10_000},
        grid={"warmup": (0.25, 0.1, 0.05), "rounds": (2, 4, 1), "temperature": (0.07, 0.15)},
    ),
    "plain": Mined(
        name="mined packs, the plain triplet loss", fixed={"rounds": 1}, recipe=Recipe(), rows_an_anchor=8,
        grid={"warmup": (0.5, 0.25, 0.7), "margin": MARGINS},
    ),
}  # fmt: skip
PICKED = PackOptions(packs="spread", pack_rows=64, fill=4)
CONTROLS = {
    "packs-random": replace(OURS["packs"], name="packs of random classes with memory", control="random"),
    "packs-even": replace(OURS["packs"], name="packs of each row once, at random, with memory", control="even"),
    "plain-random": replace(OURS["plain"], name="packs of random classes, the plain triplet loss", control="random"),
    "picked": Mined(
        name="mined packs, triplets picked in the step; mining not counted", fixed={"loss": "semi-hard"},
        grid={"warmup": (0.25, 0.05), "rounds": (4, 1), "margin": (0.5, 1.0, 0.2), "batch_rows": (64, 128)},
        recipe=Recipe(packing=PICKED), is_free=True,
    ),
}  # fmt: skip
# These have the settings of what they are controls of.
CONTROL_OF = {"packs-random": "packs", "packs-even": "packs", "plain-random": "plain"}
ARMS: dict[str, InBatch | Mined] = OPPONENTS | OURS | CONTROLS


def tried(grid: Mapping[str, tuple[Any, ...]]) -> int:
    """How many settings the descent tries: the first of all, then each other value once."""
    return 1 + sum(len(values) - 1 for values in grid.values())
