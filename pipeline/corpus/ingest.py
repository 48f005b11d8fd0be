"""Any source to a corpus, once: rows ordered by (label, id), three splits, an index for reads by row.

The jobs are in `passes`. Here is what comes before and after them: whether there is a corpus already, whether what was
found will do, and the manifest, which is written last.
"""

import itertools
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.corpus.manifest import CorpusManifest, Feature, read_corpus_manifest
from pipeline.corpus.options import IngestOptions
from pipeline.corpus.passes import stage, write_shards
from pipeline.corpus.sources import open_sources
from pipeline.corpus.sources.source import Rejected
from pipeline.corpus.staging import Staging
from pipeline.errors import InputError
from pipeline.files import manifests, storage
from pipeline.files.layout import Run

SHARD_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What is in a run directory's corpus.

    alike: labels that differ in case, spaces or form only. already: it was there before. compared: its source's files
    are the same.
    """

    run_dir: str
    source: str
    payload: Feature
    held_out: str
    leaks: dict[str, int]
    rows: dict[str, int]
    classes: dict[str, int]
    copies: int
    label_conflicts: int
    given_negatives: int
    given_triplets: int
    alike: list[list[str]]
    rejected: int
    bits: int | None
    fingerprint: str
    already: bool
    compared: bool

    def __str__(self) -> str:
        place = Run(storage.location(self.run_dir))
        size = " x ".join("any" if n is None else str(n) for n in self.payload.shape)
        lines = ["already ingested; nothing to do"] if self.already else []
        if self.already and not self.compared:
            lines.append("whether what it names changed since was not looked at")
        lines.append(f"corpus of {self.source}: {f'{self.payload.kind} {size}'.strip()}, {self.held_out}")
        for split, rows in self.rows.items():
            lines.append(f"  {split:<11}{rows:>8,} rows  {self.classes[split]:>6,} classes")
        if self.classes["train"] == 1:
            lines.append("  train has one class: no row is a negative of another, and nothing can be mined")
        if self.copies:
            conflicts = f"{self.label_conflicts:,} of them under another label"
            lines.append(f"  {self.copies:,} copies of another row's payload, {conflicts}")
        for split, leaked in self.leaks.items():
            if leaked:
                lines.append(f"  {leaked:,} rows of {split} have a copy, or a row of their group, in train")
        if self.given_negatives:
            lines.append(f"  {self.given_negatives:,} given negatives make {self.given_triplets:,} triplets in train")
        if self.bits:
            lines.append(f"  images of 16 bits a pixel are among them: {2 ** max(8, self.bits) - 1:,} becomes 255")
        if self.alike:
            first = "; ".join(", ".join(map(ascii, names)) for names in self.alike[:3])
            lines.append(f"  {len(self.alike):,} times labels differ only in case, spaces or form. Kept apart: {first}")
        stored = sum(self.rows.values())
        why = f", with reasons in {place.rejected}" if self.rejected else ""
        lines.append(f"  {stored + self.rejected:,} rows read: {stored:,} stored, {self.rejected:,} rejected{why}")
        lines.append(f"  in {place.corpus}   next: python -m trainer.init --run_dir {self.run_dir}")
        return "\n".join(lines)


def ingest(
    run_dir: Path, options: IngestOptions, beam_options: PipelineOptions, *, shard_rows: int = SHARD_ROWS
) -> Ingested:
    """Makes the corpus of a run directory, its manifest last, unless it has that corpus.

    Raises:
      InputError: if the run directory has another corpus, if the source changed since, or if too much is rejected.
    """
    place = Run(run_dir)
    already = place.corpus_manifest.exists()
    manifest = _compare(place, options) if already else _make(place, options, beam_options, shard_rows)
    splits = manifest.splits
    return Ingested(
        run_dir=str(run_dir), source=manifest.source, payload=next(iter(manifest.features.values())),
        held_out=manifest.held_out, leaks=manifest.leaks, rows={name: split.rows for name, split in splits.items()},
        classes={name: split.labels.records for name, split in splits.items()},
        copies=sum(split.copies for split in splits.values()),
        label_conflicts=sum(split.label_conflicts for split in splits.values()),
        given_negatives=manifest.given_negatives,
        given_triplets=manifest.given_triplets.records if manifest.given_triplets else 0,
        alike=manifest.alike, rejected=manifest.rejected, bits=manifest.bits, fingerprint=manifest.fingerprint,
        already=already, compared=manifest.source_stamp is not None,
    )  # fmt: skip


def _make(
    place: Run, options: IngestOptions, beam_options: PipelineOptions, shard_rows: int
) -> CorpusManifest:
    # While there is a staging directory, a corpus without a manifest is a half one of ours.
    if storage.names(place.corpus) and not place.staging.exists():
        raise InputError(f"{place.corpus} holds files but no corpus.json. Remove it, or use another --run_dir.")
    staging = Staging(place.staging.absolute() / uuid.uuid4().hex)  # an older job on an engine may still write into its
    source = open_sources(options, staging.path)
    if place.staging.exists():
        storage.remove(place.corpus)
        storage.remove(place.staging)
    stamp = source.stamp()
    found, shards = stage(source, staging, options, beam_options, shard_rows)
    _check(found, options, staging)
    written = write_shards(shards, staging, place.corpus.absolute(), beam_options, found.bits)
    for name in [place.rejected.name, *(entry.file for entry in found.arrays())]:
        storage.copy(staging.path / name, place.corpus / name)
    splits = {name: replace(split, shards=written[name]) for name, split in found.splits.items()}
    manifest = replace(found, source_stamp=stamp, splits=splits)
    manifest = replace(manifest, fingerprint=manifest.computed_fingerprint())
    manifests.write(place.corpus_manifest, manifest)  # from here on there is a corpus
    storage.remove(place.staging)
    return manifest


def _check(found: CorpusManifest, options: IngestOptions, staging: Staging) -> None:
    """Raises InputError if there is no example, if too much is rejected, or if a split lacks what it must have."""
    rows = sum(split.rows for split in found.splits.values())
    with staging.rejected.open("rb") as file:
        first = [msgspec.json.decode(line, type=Rejected) for line in itertools.islice(file, 3)]
    if not rows:
        told = "".join(f"; {entry}" for entry in first)
        raise InputError(f"{options} holds no example; {found.rejected} were rejected{told}")
    share = found.rejected / (found.rejected + rows)
    if share > options.max_rejected:
        raise InputError(
            f"{options}: {found.rejected} examples of {found.rejected + rows} are rejected, {share:.1%}, "
            f"--max_rejected is {options.max_rejected:.1%}. The first: {first[0]}; all are in {staging.rejected}. Mend "
            f"the source, or raise --max_rejected."
        )
    for name, sources in (("validation", options.validation_source), ("eval", options.eval_source)):
        if sources and name not in found.given:
            raise InputError(
                f"--{name}_source {' '.join(sources)}: none of its rows is left, all were rejected. The reasons are in "
                f"{staging.rejected}."
            )
    if not found.splits["train"].rows:
        raise InputError(f"{options}: no example is left for the train split. Lower the held-out shares.")


def _compare(place: Run, options: IngestOptions) -> CorpusManifest:
    """Raises InputError if the corpus is another than what is asked for, or if its source's files changed."""
    manifest = read_corpus_manifest(place.path)
    asked = {name: getattr(options, name) for name in ("validation_share", "eval_share", "seed")}
    held = {name: getattr(manifest.split_rule, name) for name in asked}
    if options.split_by != "auto":
        asked["split_by"], held["split_by"] = options.split_by, manifest.split_rule.by
    if (str(options), asked) != (manifest.source, held):
        raise InputError(
            f"{place.corpus} already holds {manifest.source} with {held}, asked for {options} with {asked}. "
            f"Use another --run_dir."
        )
    storage.remove(place.staging)  # if the run that ingested was killed just then
    if open_sources(options).stamp() != manifest.source_stamp:
        raise InputError(
            f"{options}: its files have other names, sizes or times than when {place.corpus} was made from "
            f"them. A run directory keeps its corpus: ingest into a new --run_dir. What was trained goes on there: "
            f"python -m trainer.init --run_dir NEW --model {place.best_checkpoint}"
        )
    return manifest
