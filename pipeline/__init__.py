"""Offline triplet mining over the whole corpus: ingest, embed, select, write.

triplets/   what a triplet is, and the exact scan
files/      bytes on a disk or in a bucket
process/    how our commands run
corpus/     rows of a source in three splits
embedding/  how rows become embeddings
packs/      how triplets become batches
mining/     the Beam graph of a round
reporting/  pages to look at
ingest, mine, embed, rounds, report, records   one command each

Each folder uses only those above it. Of the commands, `rounds` alone uses the trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.corpus.corpus import open_corpus as open_corpus
    from pipeline.files.errors import InputError as InputError
    from pipeline.mining.manifest import read_packs as read_packs
    from pipeline.triplets.arrays import mine_triplets as mine_triplets

_PUBLIC = {  # imported when they are asked for: `import pipeline` loads neither TensorFlow nor numba
    "InputError": "pipeline.files.errors",
    "mine_triplets": "pipeline.triplets.arrays",
    "open_corpus": "pipeline.corpus.corpus",
    "read_packs": "pipeline.mining.manifest",
}
__all__ = ["InputError", "mine_triplets", "open_corpus", "read_packs"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
