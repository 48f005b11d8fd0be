"""The options of mining and their defaults: which triplets are selected."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.errors import InputError, at_least_one, check_types
from pipeline.packs.packs import PackOptions
from pipeline.process.options import from_text
from pipeline.triplets.rule import Rule

Shares = tuple[tuple[str, float], ...]


def parse_shares(text: str) -> Shares:
    """`semi-hard,hard` or `semi-hard:3,hard:1`."""
    try:
        pairs = [part.partition(":") for part in text.split(",")]
        return tuple((kind.strip(), float(share) if share else 1.0) for kind, _, share in pairs)
    except ValueError:
        raise InputError(f"expected kinds with shares, as semi-hard:3,hard:1; found {text!r}") from None


def shown(shares: Shares) -> str:
    return ",".join(f"{kind}:{share:g}" for kind, share in shares)


@dataclass(frozen=True, kw_only=True)
class MiningOptions:
    """Which triplets are selected."""

    negatives: Annotated[Shares, from_text("KINDS", parse_shares, shown)] = (("semi-hard", 1.0),)
    """kinds with shares: semi-hard:3,hard:1"""
    pick: Literal["random", "nearest"] = "random"
    """out of all that qualify"""
    margin: float = 0.2
    """of the band and of the loss"""
    positives: int = 1
    """per anchor"""
    seed: int = 0
    """of every draw"""
    min_negative_distance: float = 0.0
    """guard: leave out negatives with d_an below it"""
    min_negative_ratio: float = 0.0
    """guard: leave out negatives with d_an < ratio * d_ap"""
    anchors: int | None = None
    """this many anchors, drawn; with --packs spread, rows: no others are embedded (all)"""

    def __post_init__(self) -> None:
        check_types(self)
        self.rule(0)
        at_least_one(anchors=self.anchors)

    def rule(self, round: int, pick: Literal["random", "nearest"] | None = None) -> Rule:
        """pick: another than the options' own."""
        names = ("margin", "positives", "seed", "min_negative_distance", "min_negative_ratio")
        rest = {name: getattr(self, name) for name in names}
        return Rule(shares=self.negatives, round=round, pick=pick or self.pick, **rest)


def embedded_part(mining: MiningOptions, packing: PackOptions) -> str:
    """A name for the rows that are embedded; none for all. A scan looks at all, spread packs at what they hold."""
    return f"{mining.anchors} of seed {mining.seed}" if packing.packs == "spread" and mining.anchors else ""
