"""The first checkpoint: a network that ships or one's own, with seeded weights, tried on a row of the corpus."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.corpus.corpus import Corpus
from pipeline.embedding.decoding import decode_records
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.network import checkpoint_digest, input_shape, load_checkpoint, output_dim
from pipeline.errors import InputError
from pipeline.files import storage
from pipeline.files.layout import Run
from pipeline.process.commands import log
from trainer import models
from trainer.batches import class_batches
from trainer.options import InitOptions

SETTLING_BATCHES = 40


@dataclass(frozen=True, kw_only=True)
class FirstCheckpoint:
    """already: it was there. shrinking: what `models.shrinking` says."""

    run_dir: str
    path: str
    digest: str
    already: bool
    shrinking: str = ""

    def __str__(self) -> str:
        if self.already:
            return f"{self.path} is there already; nothing to do{self.shrinking}"
        after = f"next: python -m pipeline.mine --run_dir {self.run_dir}"
        return f"first checkpoint: {self.path} ({self.digest[:12]}){self.shrinking}\n  {after}"


def write_first(run_dir: Path, options: InitOptions) -> FirstCheckpoint:
    """Writes round 0's checkpoint, unless it is there."""
    path, corpus = Run(run_dir).round(0).checkpoint, Corpus.open(run_dir)
    if path.exists():
        if options.model:
            raise InputError(f"{path} is there already. Remove {path.parent} to choose another --model.")
        model, already = load_checkpoint(path), True
    else:
        corpus.split("train").check()
        model, already = first_model(corpus, options), False
        storage.write_atomically(path, model.save)
    shrinking = models.shrinking(corpus.feature, input_shape(model, corpus.feature, path))
    digest = checkpoint_digest(model)
    return FirstCheckpoint(run_dir=str(run_dir), path=str(path), digest=digest, already=already, shrinking=shrinking)


def first_model(corpus: Corpus, options: InitOptions) -> keras.Model:
    """A network with seeded weights, or the one in a .keras file as it is."""
    keras.utils.clear_session()  # numbers layers from zero: a digest covers their names, whatever was built before
    keras.utils.set_random_seed(options.seed)
    given = (options.model or "").endswith(".keras")
    if given:
        name, model = str(options.model), load_checkpoint(storage.location(str(options.model)))
    else:
        build = models.by_path(options.model) if options.model else models.default_for(corpus.feature.kind)
        name, example = options.model or build.__name__, models.example_shape(corpus.feature, options.max_side)
        try:
            model = build(example)
        except (TypeError, ValueError) as error:
            raise InputError(f"--model {name} cannot be built for examples of shape {example}: {error}") from error
        if not isinstance(model, keras.Model):
            raise InputError(f"--model {name} returned a {type(model).__name__}, expected a keras.Model.")
    shape = input_shape(model, corpus.feature, name)
    output_dim(model, name)
    if corpus.feature.kind == "text":
        model = models.with_vocabulary(model, _train_texts(corpus))
    rows = corpus.split("train").read(np.arange(1))
    norm = np.linalg.norm(model(decode_records(corpus.feature, tf.constant(rows), shape), training=False))
    if np.isfinite(norm) and abs(norm - 1) > 1e-3:
        model = keras.Model(model.inputs, keras.layers.UnitNormalization(name="normalised")(model.outputs[0]))
        log.info("%s: an output has length %.3g, not 1; UnitNormalization() was appended", name, norm)
    if not given:
        _settle_statistics(model, corpus, shape, options.seed)
    Embedder(model, corpus.feature, name)(rows)  # better refused now than in mining
    return model


def _train_texts(corpus: Corpus) -> Any:
    """A tf.data.Dataset of batches of the train split's texts."""
    split = corpus.split("train")
    paths = [str(storage.local_copy(split.shard_path(number))) for number in range(len(split.shards))]
    return tf.data.TFRecordDataset(paths).batch(1024).map(lambda batch: decode_records(corpus.feature, batch, ()))


def _settle_statistics(model: keras.Model, corpus: Corpus, shape: tuple[int, ...], seed: int) -> None:
    """Lets batch normalisation see the corpus before anything is mined.

    With the moving statistics that Keras starts from, an untrained network maps all rows to nearly one point in
    inference mode (mean distance .01 on digits), and round 0 mines noise.
    """
    if model.non_trainable_variables:
        for inputs, _ in class_batches(corpus, shape, 32, 4, SETTLING_BATCHES, seed):
            model(inputs, training=True)
