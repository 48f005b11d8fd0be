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
errors      InputError

Each folder uses only those above it. Of the commands, `rounds` alone uses the trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.corpus.corpus import Corpus as Corpus
    from pipeline.errors import InputError as InputError
    from pipeline.mining.manifest import read_packs as read_packs
    from pipeline.mining.of_corpus import mine_corpus as mine_corpus
    from pipeline.triplets.arrays import mine_triplets as mine_triplets

_PUBLIC = {  # imported when they are asked for: `import pipeline` loads neither TensorFlow nor numba
    "Corpus": "pipeline.corpus.corpus",
    "InputError": "pipeline.errors",
    "mine_corpus": "pipeline.mining.of_corpus",
    "mine_triplets": "pipeline.triplets.arrays",
    "read_packs": "pipeline.mining.manifest",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
