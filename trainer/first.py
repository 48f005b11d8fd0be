"""The first checkpoint: a network that ships or one's own, with seeded weights, tried on a row of the corpus."""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.corpus.corpus import Corpus
from pipeline.embedding.decoding import Inputs
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.fitting import fit_network
from pipeline.embedding.network import Extras, Network, check_loads, function_at, imported, layers_of, load_network
from pipeline.errors import InputError
from pipeline.files import storage, tfrecords
from pipeline.files.layout import Run
from trainer import models
from trainer.batches import class_batches
from trainer.options import InitOptions

SETTLING_BATCHES = 40


@dataclass(frozen=True, kw_only=True)
class FirstCheckpoint:
    """already: it was there."""

    run_dir: str
    path: str
    digest: str
    already: bool

    def __str__(self) -> str:
        if self.already:
            folder = storage.location(self.path).parent
            return f"{self.path} is there already; nothing to do. For another, remove {folder} first"
        after = f"next: python -m pipeline.mine --run_dir {self.run_dir}"
        return f"first checkpoint: {self.path} ({self.digest[:12]})\n  {after}"


def write_first(run_dir: Path, options: InitOptions) -> FirstCheckpoint:
    """Writes round 0's checkpoint, unless it is there. One's own is tried in a fresh process first."""
    path, corpus = Run(run_dir).round(0).checkpoint, Corpus.open(run_dir)
    if path.exists():
        if options.model:
            raise InputError(f"{path} is there already. Remove {path.parent} to choose another --model.")
        network, already = load_network(path), True
    else:
        corpus.split("train").check()
        network, already = first_network(corpus, options), False
        if options.model:
            _try(network)
        network.save(path)
    return FirstCheckpoint(run_dir=str(run_dir), path=str(path), digest=network.digest(), already=already)


def _try(network: Network) -> None:
    """Raises InputError if it cannot be saved, or if a fresh process cannot load what was saved."""
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch, "model.keras")
        try:
            network.save(saved)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                fresh.submit(check_loads, saved).result()
        except BrokenProcessPool:
            raise OSError(
                f"the process that was to load --model {network.name} again was killed, most likely for lack of "
                f"memory. Take a smaller network, or more memory"
            ) from None
        except (InputError, NotImplementedError, TypeError) as error:
            raise InputError(f"--model {network.name} is not loaded again by another process: {error}") from error


def first_network(corpus: Corpus, options: InitOptions) -> Network:
    """A network with seeded weights, or the one in a .keras file as it is."""
    keras.utils.set_random_seed(options.seed)
    example = models.example_shape(corpus.feature, options.max_side)
    extras = Extras(
        imports=options.imports, preprocess=options.preprocess, augment=options.augment,
        shape=example if options.model else (),
    )  # fmt: skip
    given = (options.model or "").endswith(".keras")
    for module in options.imports:
        imported(module, "--import")
    if given:
        name, model = str(options.model), load_network(storage.location(str(options.model))).model
    else:
        build = function_at(options.model) if options.model else models.default_for(corpus.feature.kind)
        name = options.model or build.__name__
        try:
            model = build(example)
        except (TypeError, ValueError) as error:
            raise InputError(f"--model {name} cannot be built for examples of shape {example}: {error}") from error
        if not isinstance(model, keras.Model):
            raise InputError(f"--model {name} returned a {type(model).__name__}, expected a keras.Model.")
    if corpus.feature.kind == "text" and getattr(model, "inputs", None):
        model = models.with_vocabulary(model, _train_texts(corpus))
    rows = corpus.split("train").read(np.arange(1))
    network = fit_network(Network(model, name, extras), corpus.feature, rows)
    models.say_shrinking(corpus.feature, network.inputs(corpus.feature).shape)
    if not given:
        _settle_statistics(network, corpus, options.seed)
    Embedder(network, corpus.feature)(rows)  # better refused now than in mining
    return network


def _train_texts(corpus: Corpus) -> Any:
    """A tf.data.Dataset of batches of the train split's texts."""
    split = corpus.split("train")
    paths = [storage.local_copy(split.shard_path(number)) for number in range(len(split.shards))]
    for path, shard in zip(paths, split.shards, strict=True):
        tfrecords.check_lengths(path, shard.records)
    return tf.data.TFRecordDataset(list(map(str, paths))).batch(1024).map(Inputs(corpus.feature).of_records)


def _settle_statistics(network: Network, corpus: Corpus, seed: int) -> None:
    """Lets batch normalisation see the corpus before anything is mined.

    With the moving statistics that Keras starts from, an untrained network maps all rows to nearly one point in
    inference mode (mean distance .01 on digits), and round 0 mines noise.
    """
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers_of(network.model)):
        for inputs, _ in class_batches(corpus, network.inputs(corpus.feature), 32, 4, SETTLING_BATCHES, seed):
            network.model(inputs, training=True)
