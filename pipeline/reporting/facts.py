"""What a run directory says of its rounds."""

from dataclasses import dataclass

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import SPLITS
from pipeline.files import manifests
from pipeline.files.layout import Round
from pipeline.mining.manifest import Stats, TripletsManifest, read_manifest
from pipeline.reporting.results import Evaluation, Measures, Metrics
from pipeline.triplets.rule import KINDS


@dataclass(frozen=True, kw_only=True)
class RoundFacts:
    """What was written of one round; None while it is not there. evaluations: of its checkpoint, by split."""

    number: int
    manifest: TripletsManifest | None
    stats: Stats | None
    metrics: Metrics | None
    evaluations: dict[str, Measures]

    @property
    def spread(self) -> bool:
        """Whether packs hold far classes, and no triplets over the corpus."""
        return self.manifest is not None and self.manifest.packing.packs == "spread"

    @property
    def kinds(self) -> dict[str, int]:
        """Triplets by kind, both scopes together."""
        scopes = self.manifest.counts.values() if self.manifest else ()
        return {kind: sum(scope[kind] for scope in scopes) for kind in KINDS} if scopes else {}

    @property
    def pairs(self) -> int:
        """Anchor-positive pairs over the whole corpus; of spread packs, those inside them."""
        if self.manifest is None:
            return 0
        if self.spread:
            return sum(self.manifest.counts["pack"].values()) + sum(self.manifest.skipped["pack"].values())
        return self.manifest.pairs

    @property
    def served(self) -> float | None:
        """The share of `pairs` that got a triplet."""
        if self.manifest is None or not self.pairs:
            return None
        return sum(self.manifest.counts["pack" if self.spread else "corpus"].values()) / self.pairs


def facts_of(round: Round, corpus: Corpus) -> RoundFacts:
    manifest = read_manifest(round, corpus) if round.manifest.exists() else None
    number = round.number
    evaluations = {
        split: manifests.read_if_there(round.evaluation(split), Evaluation, round=number, split=split)
        for split in SPLITS
    }
    # A warm-up may have replaced round 0's checkpoint since it was evaluated.
    fits = {
        split: found.measures
        for split, found in evaluations.items()
        if found and (manifest is None or manifest.checkpoint_digest == found.checkpoint_digest)
    }
    return RoundFacts(
        number=number, manifest=manifest, stats=manifests.read_if_there(round.stats, Stats, round=number),
        metrics=manifests.read_if_there(round.metrics, Metrics, round=number), evaluations=fits,
    )  # fmt: skip
