"""What mining a round came to."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.files.layout import Run
from pipeline.files.storage import location
from pipeline.mining.manifest import TripletsManifest
from pipeline.packs.write import SCOPES

COLLAPSED = 0.95  # norm of the mean embedding; 0 for embeddings that are spread out


def collapse(norm: float) -> str:
    """What to say of the norm of the mean embedding; nothing up to COLLAPSED."""
    return "" if norm <= COLLAPSED else f"COLLAPSED: all embeddings lie together (their mean has norm {norm:.3f})."


def way_out(round: int) -> str:
    """What to do where the embeddings that a round is mined with have collapsed."""
    if round:
        return (
            f"Training round {round - 1} did that: in a copy of the run directory as it was before, train with a lower "
            f"--learning_rate, or mine without hard negatives."
        )
    return "In a new --run_dir, start from other weights, or warm up with a lower --learning_rate."


@dataclass(frozen=True, kw_only=True)
class Mined:
    """A mined round. already: nothing was to do. mean_norm: of the mean embedding. Its text is a summary."""

    run_dir: str
    round: int
    already: bool
    triplets: int
    packs: int
    rows: int
    counts: dict[str, dict[str, int]]
    skipped: dict[str, dict[str, int]]
    guarded: dict[str, int]
    triplet_digest: str
    mean_norm: float
    seconds: float

    @classmethod
    def of(
        cls, run_dir: Path, manifest: TripletsManifest, seconds: float = 0.0, already: bool = False
    ) -> "Mined":
        names = ("round", "triplets", "packs", "rows", "counts", "skipped", "guarded", "triplet_digest", "mean_norm")
        told = {name: getattr(manifest, name) for name in names}
        return cls(run_dir=str(run_dir), already=already, seconds=seconds, **told)

    def __str__(self) -> str:
        lines = [f"round {self.round} is mined already; nothing to do"] if self.already else []
        size = f"{self.packs:,} packs of {self.rows:,} rows"
        took = "" if self.already else f", {self.seconds:.1f} s"
        lines.append(f"round {self.round}: {self.triplets:,} triplets in {size}{took}")
        for scope in SCOPES:
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in self.counts[scope].items() if n)
            lines.append(
                f"  {'over the whole corpus' if scope == 'corpus' else 'inside the packs':<22}{kinds or 'none'}"
            )
        skipped = {**self.skipped["corpus"], **self.skipped["pack"]}
        reasons = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in skipped.items() if n)
        lines.append(f"  {'skipped':<22}{reasons or 'none'}")
        if any(self.guarded.values()):
            lines.append(f"  {'guards acted on':<22}{sum(self.guarded.values()):,} pairs")
        if said := collapse(self.mean_norm):
            lines.append(f"  {said} These triplets teach little. {way_out(self.round)}")
        place = Run(location(self.run_dir)).round(self.round)
        lines.append(f"  in {place.triplets}")
        if place.checkpoint.exists():
            lines.append(f"  next: python -m trainer.train --run_dir {self.run_dir}")
        else:
            lines.append("  mined from embeddings: train on its packs yourself, see docs/own-training-loop.md")
        return "\n".join(lines)
