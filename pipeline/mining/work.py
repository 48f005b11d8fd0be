"""What workers are told of a round: the job, and the items that its scan is cut into."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.corpus.corpus import Corpus
from pipeline.embedding.machine import device_name, gpu_names
from pipeline.embedding.store import EmbeddingStore
from pipeline.errors import InputError
from pipeline.files import storage
from pipeline.files.layout import Round
from pipeline.files.manifests import sha256_of_json
from pipeline.mining.options import MiningOptions, embedded_part
from pipeline.packs.packs import PackOptions
from pipeline.triplets.columns import ANCHOR_BLOCK
from pipeline.triplets.rule import Rule

SHARD_PAIRS = (4096, 26_000)  # anchor-positive pairs of a triplet shard: in small rounds, and in the largest


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a round is cut into work items: only speed. blocks: of anchors; columns: blocks of them, for `nearest`."""

    blocks: int = 8
    columns: int = 64


@dataclass(frozen=True, kw_only=True)
class Job:
    """One round's mining: everything a worker needs to know, small enough to be sent to it.

    machine: the kind of the one that began. launch: of this run of the command alone. threads: of a worker; None: as
    many as its machine has cores. scan: auto, cpu or gpu. Neither of the two changes a triplet.
    """

    round: Round
    mining: MiningOptions
    packing: PackOptions
    corpus_fingerprint: str
    checkpoint_digest: str
    machine: str = ""
    launch: str = field(default_factory=lambda: uuid.uuid4().hex)
    threads: int | None = None
    scan: str = "auto"
    tiling: Tiling = Tiling()

    @property
    def rule(self) -> Rule:
        return self.mining.rule(self.round.number)

    @property
    def pack_rule(self) -> Rule:
        """Of triplets inside the packs."""
        return self.mining.rule(self.round.number, self.packing.pack_pick)

    @property
    def work(self) -> Path:
        """Intermediate results, named by everything that shapes them; removed when the round is mined."""
        embedded = [self.corpus_fingerprint, self.checkpoint_digest, self.machine]
        shaped_by = [self.mining, self.packing, self.tiling, *embedded]
        return self.round.work(sha256_of_json(shaped_by)[:16])

    def begin(self) -> None:
        """From here on this is the newest run on its round."""
        storage.write_atomically(self.work / "launch", lambda path: path.write_text(self.launch, encoding="ascii"))

    def check_newest(self) -> None:
        """On an engine a job may go on after the command that began it: it is not to write among what is newer.

        Raises:
          InputError: if another run has begun since, or if the round is mined.
        """
        path = self.work / "launch"
        if not path.exists() or path.read_text(encoding="ascii") != self.launch:
            raise InputError(f"another run of pipeline.mine went on with {self.round.path}: this job ends")

    def open_corpus(self) -> Corpus:
        return Corpus.open(self.round.run)

    def open_store(self) -> EmbeddingStore:
        part = embedded_part(self.mining, self.packing)
        return EmbeddingStore(self.round, self.open_corpus(), self.checkpoint_digest, part)

    def worker_threads(self) -> int:
        """In a worker: how many it is to use."""
        return self.threads or os.cpu_count() or 1

    def scans_on_gpu(self) -> bool:
        """In a worker: whether its scan is to run on a GPU.

        Raises:
          InputError: if it has none, and one was asked for.
        """
        found = gpu_names()
        if self.scan == "gpu" and not found:
            raise InputError(
                f"--scan gpu: TensorFlow sees no GPU on this machine, only its {device_name()}. Install the extra "
                f"`gpu`, see docs/gpu.md, or leave --scan out."
            )
        return self.scan != "cpu" and bool(found)

    def shards(self, rows: int) -> int:
        """How many triplet shards the round gets: 2,000 of growing size between the two limits of SHARD_PAIRS."""
        pairs = min(self.mining.anchors or rows, rows) * self.mining.positives
        least, most = SHARD_PAIRS
        return -(-pairs // min(max(pairs // 2000, least), most))


@dataclass(frozen=True, kw_only=True)
class Item:
    """A work item: some anchor blocks, the number-th, against column blocks first_column to last_column - 1."""

    number: int
    first_column: int
    last_column: int


def list_items(job: Job, anchors: int, blocks: int) -> Iterator[Item]:
    """Cuts the round into work items. `random` needs an anchor block's columns whole; `nearest` may split them."""
    step = blocks if job.mining.pick == "random" else job.tiling.columns
    for n in range(-(-anchors // (job.tiling.blocks * ANCHOR_BLOCK))):
        for c in range(0, blocks, step):
            yield Item(number=n, first_column=c, last_column=min(c + step, blocks))
