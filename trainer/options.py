"""What shapes the first checkpoint, the warm-up and the training of a round, and their defaults."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pipeline.errors import InputError, above_zero, at_least_one, check_types
from pipeline.process.options import from_text

MEMORY_TEMPERATURE = 0.07  # of cosines; on Omniglot .05, .07 and .1 did alike
Rates = tuple[tuple[str, float], ...]


def parse_rates(text: str) -> Rates:
    """`backbone:0.1,head:2`."""
    try:
        return tuple((name, float(factor)) for name, _, factor in (part.rpartition(":") for part in text.split(",")))
    except ValueError:
        raise InputError(f"expected layers with factors, as backbone:0.1,head:2; found {text!r}") from None


def shown(rates: Rates) -> str:
    return ",".join(f"{name}:{factor:g}" for name, factor in rates)


@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """The network."""

    model: str | None = None
    """package.module:function (see trainer/models.py), or a .keras file (what ships for the corpus' kind)"""
    preprocess: str | None = None
    """package.module:function, payloads to what the network takes (images are decoded and scaled, else as stored)"""
    augment: str | None = None
    """package.module:function that changes inputs in training"""
    imports: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="import")] = ()
    """modules that register the network's classes with Keras"""
    seed: int = 0
    """of the weights"""
    max_side: int = 32
    """pixels a side that a network is built for; larger images are shrunk to it (no say over a .keras file)"""

    def __post_init__(self) -> None:
        check_types(self)
        at_least_one(max_side=self.max_side)


@dataclass(frozen=True, kw_only=True)
class WarmupOptions:
    """The warm-up."""

    steps: int | None = None
    """of batch_rows images (as many as --epochs over the train split have)"""
    epochs: int = 1
    """passes over the train split"""
    loss: Literal["semi-hard", "batch-hard", "n-pair", "semi-hard+n-pair"] = "semi-hard"
    """semi-hard: the nearest negative beyond each positive; batch-hard: a row's hardest; n-pair: a softmax"""
    margin: float = 0.2
    """of the in-batch triplets"""
    temperature: float = MEMORY_TEMPERATURE
    """of n-pair: of cosines"""
    memory_rows: int = 0
    """embeddings of past batches that each image is also compared with (cross-batch memory)"""
    memory_start: float = 0.25
    """share of the steps before the memory, empty then, is used: embeddings change too fast at first"""
    batch_rows: int = 128
    """images a batch: P classes x 4 rows"""
    learning_rate: float = 3e-3
    """of Adam, at its peak"""
    seed: int = 0
    """of weights and batches"""

    def __post_init__(self) -> None:
        check_types(self)
        counted = ("steps", "epochs", "margin", "temperature", "batch_rows", "learning_rate")
        above_zero(**{name: getattr(self, name) for name in counted})
        least = max(self.batch_rows, 8)  # two classes of four
        if self.memory_rows and self.memory_rows < least:
            raise InputError(f"memory_rows must be 0, or a batch ({least}) or more; found {self.memory_rows}")
        if not 0 <= self.memory_start < 1:
            raise InputError(f"memory_start must be in [0, 1); found {self.memory_start}")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The training of a round."""

    epochs: int = 1
    """passes over the round's packs, at most"""
    batch_rows: int | None = None
    """images a batch and device (a pack's; of lone triplets 128)"""
    # On Omniglot small1, three rounds after a short warm-up ended at MAP@R .69 with 3e-3 and .71 with 1e-3.
    learning_rate: float = 1e-3
    """of the optimizer, at its peak"""
    loss: Literal["triplet", "active-triplet", "contrastive", "semi-hard"] = "triplet"
    """of the mined triplets; semi-hard: of triplets that are picked anew in each pack; formulas in trainer/losses.py"""
    optimizer: str = "adam"
    """of Keras: a name, or a config as JSON, {"class_name": "AdamW", "config": {"weight_decay": 0.01}}"""
    layer_rates: Annotated[Rates, from_text("LAYER:FACTOR,…", parse_rates, shown)] = ()
    """layers that learn at another rate, as backbone:0.1"""
    memory_rows: int = 0
    """mined embeddings that each image is also compared with"""
    temperature: float = MEMORY_TEMPERATURE
    """of that comparison: of cosines"""
    min_active: float = 0.0
    """end when a smaller share of the triplets is active"""
    seed: int = 0
    """of the batches"""

    def __post_init__(self) -> None:
        check_types(self)
        above_zero(**{name: getattr(self, name) for name in ("epochs", "batch_rows", "learning_rate", "temperature")})
        if any(factor < 0 for _, factor in self.layer_rates):
            raise InputError(f"layer_rates must be 0 or more; found {shown(self.layer_rates)}")
        if self.memory_rows < 0:
            raise InputError(f"memory_rows must be 0 or more; found {self.memory_rows}")
        if not 0 <= self.min_active < 1:
            raise InputError(f"min_active must be in [0, 1); found {self.min_active}")
