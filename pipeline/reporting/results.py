"""What training and evaluation leave in a round's folder: written by the trainer, read by the report."""

from dataclasses import dataclass
from typing import Any, ClassVar

Measures = dict[str, float | int | None]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Means over an epoch."""

    loss: float
    memory_loss: float
    active_share: float
    d_ap: float
    d_an: float
    triplets: int

    def __str__(self) -> str:
        line = f"loss {self.loss:.4f}, active {self.active_share:.0%}, d_ap {self.d_ap:.3f}, d_an {self.d_an:.3f}"
        return line + (f", loss of the memory {self.memory_loss:.3f}" if self.memory_loss else "")


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """metrics.json: how a round was trained. steps and total_steps: of this round, and of all up to it."""

    FORMAT: ClassVar[str] = "triplet-miner-metrics/2"
    round: int
    device: str
    replicas: int
    margin: float
    options: dict[str, Any]
    steps: int
    total_steps: int
    image_passes: int
    triplets_per_image_pass: dict[str, float]
    epochs: list[Epoch]
    stopped_by: str
    seconds: float
    checkpoint_digest: str
    next_checkpoint_digest: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """evaluation-SPLIT.json. measures: by name, see trainer/measures; None where there are no pairs for it. round:
    whose checkpoint, None in those of before."""

    FORMAT: ClassVar[str] = "triplet-miner-evaluation/2"
    split: str
    corpus_fingerprint: str
    checkpoint_digest: str
    measures: Measures
    round: int | None = None


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """baselines-SPLIT.json. measures: by what was compared, as an Evaluation has them."""

    FORMAT: ClassVar[str] = "triplet-miner-baselines/1"
    split: str
    corpus_fingerprint: str
    measures: dict[str, Measures]


def worse_than_untrained(baselines: dict[str, Measures], title: str, found: float | None) -> str:
    """A line where MAP@R is below a baseline's; else nothing. title: of what has that MAP@R."""
    value = {name: measures["map_at_r"] or 0.0 for name, measures in baselines.items()}
    best = max(value, key=lambda name: value[name], default="")
    if found is None or not best or found >= value[best]:
        return ""
    return f"WORSE THAN WITHOUT TRAINING: {title} has MAP@R {found:.3f}, {best} {value[best]:.3f}."


@dataclass(frozen=True, kw_only=True)
class Best:
    """best.json: whose checkpoint is in best/."""

    FORMAT: ClassVar[str] = "triplet-miner-best/1"
    round: int
    validation_map_at_r: float | None

    def __str__(self) -> str:
        if self.validation_map_at_r is None:
            return f"round {self.round}'s, the newest: there is no validation split to choose by"
        return f"round {self.round}'s, validation MAP@R {self.validation_map_at_r:.3f}"
