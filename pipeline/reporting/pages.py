"""report.html of each mined round, suspected-labels.tsv beside it, index.html over rounds.

This gathers what they say, all from the run directory; templates/round.html and index.html lay it out. Pages stand
alone: no script, no network, pictures inside.
"""

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import SPLITS
from pipeline.embedding.store import EmbeddingStore
from pipeline.errors import InputError
from pipeline.files import storage
from pipeline.files.layout import Run
from pipeline.mining.manifest import TripletsManifest, store_of
from pipeline.mining.options import shown as shown_shares
from pipeline.packs.write import SCOPES
from pipeline.reporting import charts, confusion, neighbours, sample, suspects
from pipeline.reporting.advice import advise
from pipeline.reporting.charts import Chart
from pipeline.reporting.facts import RoundFacts, facts_of
from pipeline.reporting.sample import Pairs, Sample
from pipeline.reporting.suspects import Suspect
from pipeline.reporting.templating import write_page
from pipeline.reporting.views import look_up
from pipeline.triplets.rule import KINDS

DRAWN, CLOSEST = 12, 12  # triplets shown
PAIRS, EXAMPLES = 9, 3  # of confused classes
HEAT_CLASSES = 16
SUSPECTS = 24  # shown; the file has all
FORMULA = ("=", "+", "-", "@")  # a spreadsheet would run what begins with them
SUSPECT_COLUMNS = (
    "id", "label", "looks_like", "row", "copy", "neighbours", "own", "other", "d_own", "d_other", "anchors",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reported:
    """pages: of rounds, by number; suspected: how many labels each suspects."""

    pages: dict[int, str]
    suspected: dict[int, int]
    index: str

    def __str__(self) -> str:
        lines = [f"round {n}: {page}, {self.suspected[n]:,} suspected labels" for n, page in self.pages.items()]
        return "\n".join([*lines, f"all rounds: {self.index}"])


def report(run_dir: Path, numbers: tuple[int, ...] = (), packs: int | None = None) -> Reported:
    """Writes the pages of rounds, or of all that are mined, and the one over rounds."""
    corpus, run = Corpus.open(run_dir), Run(run_dir)
    numbers = numbers or tuple(round.number for round in run.rounds() if round.manifest.exists())
    for folder in (run_dir, *(run.round(number).path for number in numbers)):
        storage.check_writable(folder)
    suspected = {number: write_round(run_dir, number, corpus, packs) for number in numbers}
    pages = {number: str(run.round(number).report) for number in numbers}
    return Reported(pages=pages, suspected=suspected, index=str(write_index(run_dir, corpus)))


# ---- A round's page. ----


def write_round(run_dir: Path, number: int, corpus: Corpus, packs: int | None = None) -> int:
    """Writes a mined round's report.html and suspected-labels.tsv.

    packs: to read at most; None: what keeps it quick. Returns the number of suspected labels.
    """
    run = Run(run_dir)
    round = run.round(number)
    facts, after = facts_of(round, corpus), facts_of(round.next, corpus)
    mined = [found.number for found in run.rounds() if found.manifest.exists()]
    manifest, split = facts.manifest, corpus.split("train")
    if manifest is None:
        known = f"mined are rounds {', '.join(map(str, mined))}" if mined else "no round is mined"
        raise InputError(
            f"{round.manifest} is missing: round {number} is not mined, {known}. Mine it: python -m pipeline.mine "
            f"--run_dir {run_dir}"
        )
    found = sample.read_sample(round.triplets, manifest, packs or sample.packs_to_read(manifest), split)
    store = _embeddings(store_of(round, corpus, manifest))
    evidence: Pairs = found  # of what is confused and mislabelled
    if facts.spread and store:
        evidence = neighbours.nearest_others(store, seed=number)
    suspected = suspects.suspects(evidence, split, store)
    if corpus.manifest.splits["train"].label_conflicts:
        suspected = suspects.with_conflicts(suspected, split)
    write_suspects(round.suspects, suspected, corpus)
    galleries = {
        "Drawn at random": sample.drawn(found, DRAWN, seed=number),
        "The smallest gaps, one for each pair of classes": sample.closest(found, CLOSEST),
    }
    pairs = confusion.confusions(evidence, PAIRS, EXAMPLES)
    shown, listed = np.concatenate([*galleries.values()]), suspected[:SUSPECTS]
    examples = [t for pair in pairs for t in pair.examples]
    rows = itertools.chain(
        found.anchor[shown], found.positive[shown], found.negative[shown],
        evidence.anchor[examples], evidence.negative[examples],
        (s.row for s in listed), (s.nearest for s in listed if s.nearest is not None),
    )  # fmt: skip
    write_page(
        round.report, "round.html",
        round=facts, m=manifest, after=after.evaluations, mined=mined, run=str(run_dir), corpus=corpus, train=split,
        views=look_up(corpus, rows), sample=found, galleries=galleries, kinds=KINDS,
        scale=float(np.maximum(found.d_ap + manifest.mining.margin, found.d_an)[shown].max()),
        histograms=histograms(found, manifest), heat=heat_map(evidence, split.labels), pairs=pairs,
        evidence=evidence, by_near_rows=evidence is not found, near=neighbours.NEAR,
        suspects=suspected, listed=listed, checked=store is not None,
        advice=advise(store, manifest) if store else None,
        counts=count_tables(manifest), settings=settings(manifest),
        quality=[
            (f"{when} training (round {of.number}’s)", name, measures)
            for when, of in (("before", facts), ("after", after))
            for name, measures in of.evaluations.items()
        ],
    )  # fmt: skip
    return len(suspected)


def _embeddings(store: EmbeddingStore) -> EmbeddingStore | None:
    """The round's embeddings; None if they are not all there: somebody may have removed them.

    Raises:
      InputError: if one is damaged: the page would be another.
    """
    if store.removed():
        return None
    for shard in range(store.files):
        if not store.has(shard):
            raise InputError(
                f"{store.path(shard)} is not what was mined with. Restore it, or remove it: pages do without."
            )
    return store


def write_suspects(path: Path, suspected: list[Suspect], corpus: Corpus) -> None:
    """Suspects as tab-separated values with a header; fields that hold a tab or a line's end are quoted."""
    split = corpus.split("train")
    examples = split.examples(np.array([s.row for s in suspected], np.int64))

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, dialect="excel-tab", lineterminator="\n")
            table.writerow(SUSPECT_COLUMNS)
            for example, s in zip(examples, suspected, strict=True):
                names = [example["id"][0].decode(), split.labels[s.label], split.labels[s.looks_like]]
                names = ["'" + name if name.startswith(FORMULA) else name for name in names]
                near = [s.neighbours, s.own, s.other, f"{s.d_own:.4f}", f"{s.d_other:.4f}"]
                table.writerow([*names, s.row, int(s.copy), *(near if s.neighbours else [""] * 5), s.anchors])

    storage.write_atomically(path, write)


def histograms(found: Sample, manifest: TripletsManifest) -> list[Chart]:
    of_kind = {name: found.kind == k for k, name in enumerate(KINDS) if (found.kind == k).any()}
    marks = {"margin": manifest.mining.margin} | ({"": 0.0} if "hard" in of_kind else {})
    drawn = []
    for title, values, lines in (
        ("Anchor to positive, d_ap", found.d_ap, {}),
        ("Anchor to negative, d_an", found.d_an, {}),
        ("Gap, d_an − d_ap", found.gap, marks),
    ):
        low, middle, high = np.percentile(values, [5, 50, 95])
        note = f"median {middle:.3f}, nine tenths from {low:.3f} to {high:.3f}"
        drawn.append(charts.histogram(title, note, {name: values[where] for name, where in of_kind.items()}, lines))
    return drawn


def heat_map(pairs: Pairs, labels: list[str]) -> dict[str, Any]:
    """classes: names. rows: for each, with each: triplets, and their share of those whose anchor is of the row's."""
    listed, matrix = confusion.confusion_matrix(pairs, HEAT_CLASSES)
    anchors = np.bincount(pairs.classes[:, 0], minlength=len(labels))[listed]
    shares = matrix / np.maximum(anchors, 1)[:, None]
    rows = [list(zip(*row, strict=True)) for row in zip(matrix.tolist(), shares.tolist(), strict=True)]
    return {"classes": [labels[c] for c in listed], "rows": rows, "most": shares.max()}


def settings(manifest: TripletsManifest) -> dict[str, Any]:
    mining, packing = manifest.mining, manifest.packing
    shown = {"negatives": shown_shares(mining.negatives), "pack_pick": packing.pack_pick or mining.pick}
    return vars(mining) | vars(packing) | shown


def count_tables(manifest: TripletsManifest) -> dict[str, Any]:
    """What became of the pairs that were tried.

    By scope, (pairs, [(outcome, how many, their share of the pairs, whether they were skipped)]).
    """
    tables = dict[str, Any]()
    no_pairs = ("anchors_without_positive", "rows_in_packs_of_one_class", "given_triplets_not_valid")
    for scope in ("pack",) if manifest.packing.packs == "spread" else SCOPES:
        counts = {kind: n for kind, n in manifest.counts[scope].items() if n}
        skipped = {reason: n for reason, n in manifest.skipped[scope].items() if reason not in no_pairs}
        beside = {"pairs where a guard left out a row": manifest.guarded[scope]}
        if not tables:
            beside |= {reason: manifest.skipped["corpus"].get(reason, 0) for reason in no_pairs}
            beside["pairs that took another kind than they drew"] = manifest.fallback
        total = sum(counts.values()) + sum(skipped.values())
        rows = [(name, n, n / max(total, 1), name in skipped) for name, n in (counts | skipped).items()]
        tables[scope] = total, rows + [(name, n, None, True) for name, n in beside.items() if n]
    return tables


# ---- The page over rounds. ----


def write_index(run_dir: Path, corpus: Corpus) -> Path:
    """Writes index.html over all rounds. Returns its path."""
    run = Run(run_dir)
    rounds = [facts_of(round, corpus) for round in run.rounds()]
    validated = map_at_r(rounds, "validation")
    best = max(validated, key=lambda n: (validated[n], -n), default=None)
    write_page(
        run.index_page, "index.html",
        run=str(run_dir), name=run_dir.name, corpus=corpus, train=corpus.split("train"), rounds=rounds, best=best,
        validated=validated, kinds=dict.fromkeys(kind for r in rounds for kind, n in r.kinds.items() if n),
        charts=index_charts(rounds), after={r.number - 1: r.evaluations.get("validation", {}) for r in rounds},
        pages=[r.number for r in rounds if run.round(r.number).report.exists()],
        quality=[(f"round {r.number}’s", name, measures) for r in rounds for name, measures in r.evaluations.items()],
    )  # fmt: skip
    return run.index_page


def map_at_r(rounds: list[RoundFacts], split: str) -> dict[int, float]:
    """By round, of its checkpoint."""
    found = {r.number: r.evaluations.get(split, {}).get("map_at_r") for r in rounds}
    return {number: value for number, value in found.items() if value is not None}


def index_charts(rounds: list[RoundFacts]) -> list[Chart]:
    quality = {split: map_at_r(rounds, split) for split in SPLITS}
    active = {"in the last epoch": {r.number: r.metrics.epochs[-1].active_share for r in rounds if r.metrics}}
    kinds = {kind: {r.number: float(r.kinds[kind]) for r in rounds if r.manifest} for kind in KINDS}
    seconds = {
        "mining": {r.number: r.stats.mining_seconds for r in rounds if r.stats},
        "training": {r.number: r.metrics.seconds for r in rounds if r.metrics},
    }
    drawn = (
        charts.lines("MAP@R", "of each round’s checkpoint, on held-out rows", quality, ".3f"),
        charts.lines("Active share", "of the triplets trained on", active, ".0%"),
        charts.columns("Triplets", "of each round, by kind", kinds, ""),
        charts.columns("Seconds", "of each round", seconds, " s"),
    )
    return [chart for chart in drawn if chart]
