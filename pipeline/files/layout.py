"""Where everything lies in a run directory: the one place that knows.

RUN_DIR/
  .lock-mine, .lock-train     who works there
  corpus/                     corpus.json, shards with their indexes, SPLIT.labels.jsonl, SPLIT.first_rows.npy,
                              rejected.jsonl, given.npy
  corpus.new/                 while a corpus is made
  rounds/0000/
    checkpoint/               model.keras, what this round mines with; network.json, optimizer.npz
    embeddings/KEY/           named by content of checkpoint and corpus
    work/KEY/                 while the round is mined
    triplets/                 shards, triplets.json
    train/                    metrics.json, TensorBoard logs, the state of an interrupted training
    report.html, suspected-labels.tsv, evaluation-SPLIT.json, stats.json
  best/model.keras, best.json
  plan.json                   of `pipeline.rounds`
  baselines-SPLIT.json        how good the payload is without training
  index.html
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import storage

ROUND = re.compile(r"[0-9]{4}|[1-9][0-9]{4,}")


@dataclass(frozen=True)
class Run:
    """A run directory."""

    path: Path

    @property
    def corpus(self) -> Path:
        return self.path / "corpus"

    @property
    def corpus_manifest(self) -> Path:
        return self.corpus / "corpus.json"

    @property
    def rejected(self) -> Path:
        return self.corpus / "rejected.jsonl"

    @property
    def staging(self) -> Path:
        return self.path / "corpus.new"

    @property
    def best_checkpoint(self) -> Path:
        return self.path / "best" / "model.keras"

    @property
    def best(self) -> Path:
        return self.path / "best" / "best.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    def baselines(self, split: str) -> Path:
        return self.path / f"baselines-{split}.json"

    @property
    def index_page(self) -> Path:
        return self.path / "index.html"

    def lock(self, role: str) -> Path:
        return self.path / f".lock-{role}"

    def round(self, number: int) -> "Round":
        return Round(self.path, number)

    def rounds(self) -> list["Round"]:
        """Those that have a folder, ascending."""
        names = sorted(storage.names(self.path / "rounds"), key=lambda name: (len(name), name))
        return [self.round(int(name)) for name in names if ROUND.fullmatch(name)]

    def newest(self, path: Callable[["Round"], Path]) -> "Round | None":
        """The highest round that has a file: `run.newest(lambda round: round.checkpoint)`."""
        return next((found for found in reversed(self.rounds()) if path(found).exists()), None)

    def newest_checkpoint(self) -> "Round | None":
        return self.newest(lambda found: found.checkpoint)

    def newest_mined(self) -> "Round | None":
        return self.newest(lambda found: found.manifest)

    def mined(self, number: int | None = None) -> "Round":
        """A mined round, the newest unless told. Raises InputError if there is none."""
        found = self.newest_mined() if number is None else self.round(number)
        if found is None or not found.manifest.exists():
            where, call = found.path if found else self.path, f"python -m pipeline.mine --run_dir {self.path}"
            raise InputError(f"nothing is mined in {where} yet. Next: {call}")
        return found

    def folders(self) -> list[Path]:
        """Every folder that we write files into."""
        inside = [folder for found in self.rounds() for folder in found.folders()]
        return [self.path, self.corpus, self.staging, self.best.parent, *inside]


@dataclass(frozen=True)
class Round:
    """One round of a run directory."""

    run: Path
    number: int

    @property
    def path(self) -> Path:
        return self.run / "rounds" / f"{self.number:04d}"

    @property
    def next(self) -> "Round":
        return Round(self.run, self.number + 1)

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint" / "model.keras"

    @property
    def optimizer(self) -> Path:
        return self.path / "checkpoint" / "optimizer.npz"

    def embeddings(self, key: str) -> Path:
        return self.path / "embeddings" / key

    def work(self, key: str) -> Path:
        return self.path / "work" / key

    @property
    def triplets(self) -> Path:
        return self.path / "triplets"

    @property
    def manifest(self) -> Path:
        return self.triplets / "triplets.json"

    @property
    def stats(self) -> Path:
        return self.path / "stats.json"

    @property
    def train(self) -> Path:
        return self.path / "train"

    @property
    def metrics(self) -> Path:
        return self.train / "metrics.json"

    def evaluation(self, split: str) -> Path:
        return self.path / f"evaluation-{split}.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def suspects(self) -> Path:
        return self.path / "suspected-labels.tsv"

    def folders(self) -> list[Path]:
        keyed = [self.path / "embeddings", self.path / "work"]
        inside = [folder / name for folder in keyed for name in storage.names(folder)]
        below = [self.path / "work" / key / name for key in storage.names(self.path / "work") for name in WORK]
        return [self.path, self.checkpoint.parent, self.triplets, self.train, *inside, *below]


WORK = ("columns", "found", "groups")  # folders of a round's work
