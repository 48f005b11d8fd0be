"""Training on mined triplets: TensorFlow and Keras; no Beam, but in `rounds`.

init, warmup, train, evaluate   one command each
options    of init, warmup and train, which a recipe names too
models     the networks that ship
first      round 0's checkpoint
warming    in-batch training before anything is mined
loop       a round's training from start to checkpoint
step       one training step, on every device there is
losses     on embeddings
batches    triplet TFRecords, and corpus records, to batches
memory     embeddings of the corpus that a batch is compared with beside its own
kinds      which rows are each other's positives and negatives, in a graph
events     what TensorBoard shows
state      what an interrupted training needs to go on
recipe     all settings of the rounds, in a file of recipes/
rounds     mining and training in turn, by a plan on disk
measures/  how good embeddings are
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.batches import triplet_dataset as triplet_dataset
    from trainer.loop import train_newest as train_newest
    from trainer.losses import ActiveTripletLoss as ActiveTripletLoss
    from trainer.losses import ContrastiveLoss as ContrastiveLoss
    from trainer.losses import MemoryLoss as MemoryLoss
    from trainer.losses import TripletLoss as TripletLoss
    from trainer.losses import TripletSemiHardLoss as TripletSemiHardLoss
    from trainer.measures.evaluation import evaluate_embeddings as evaluate_embeddings
    from trainer.measures.evaluation import evaluate_rounds as evaluate_rounds
    from trainer.rounds import run_rounds as run_rounds

_PUBLIC = {  # imported when they are asked for: `import trainer` does not load TensorFlow
    "ActiveTripletLoss": "trainer.losses",
    "ContrastiveLoss": "trainer.losses",
    "MemoryLoss": "trainer.losses",
    "TripletLoss": "trainer.losses",
    "TripletSemiHardLoss": "trainer.losses",
    "evaluate_embeddings": "trainer.measures.evaluation",
    "evaluate_rounds": "trainer.measures.evaluation",
    "run_rounds": "trainer.rounds",
    "train_newest": "trainer.loop",
    "triplet_dataset": "trainer.batches",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
