"""Mining a corpus from Python: with a model in memory, a checkpoint, or embeddings of another encoder."""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import keras
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.manifest import Feature
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.fitting import fit_network
from pipeline.embedding.network import EXTRAS, Extras, Network, copy_checkpoint, load_network
from pipeline.errors import InputError, at_least_one
from pipeline.files import manifests, storage
from pipeline.files.layout import Round, Run
from pipeline.mining.job import mine_round
from pipeline.mining.manifest import TripletsManifest
from pipeline.mining.mined import Mined
from pipeline.mining.options import MiningOptions
from pipeline.packs.packs import PackOptions
from pipeline.process import lock
from pipeline.process.beam import in_process
from pipeline.triplets.arrays import kind_shares, normalised
from pipeline.triplets.rows import to_grid


def mine_corpus(
    corpus: Corpus,
    model: keras.Model | Path | str | None = None,
    *,
    embeddings: Any = None,
    preprocess: str | None = None,
    kind: str | Mapping[str, float] = "semi-hard",
    beam_options: PipelineOptions | None = None,
    threads: int | None = None,
    **options: Any,
) -> Mined:
    """Mines a round of a corpus: writes triplets and packs into its run directory.

    The same model again gives the round that it mined. Another one begins the next round.

    Args:
      model: a keras.Model, or the path of a .keras file.
      embeddings: in place of a model: numbers [rows, dim] of the train split, in the order of `corpus.rows()`, of
        NumPy, TensorFlow or PyTorch; L2-normalised here. Such a round has no checkpoint.
      preprocess: of a keras.Model, `package.module:function`: payloads to what it takes, see docs/own-model.md.
      kind: as for `mine_triplets`.
      beam_options: where the job runs; None runs it in this process.
      threads: of a worker's scan; None for as many as it has cores.
      options: fields of `pipeline.mining.options.MiningOptions` and of `pipeline.packs.packs.PackOptions`: margin,
        pick, positives, anchors, pack_rows, ...
    Raises:
      InputError: if neither or both of model and embeddings are given, if they do not fit the corpus, if the model's
        output has not length 1, if an option is wrong, or if the round is mined already with other ones.
      TypeError: for an option that there is not.

    >>> corpus = Corpus.open("runs/digits")                    # doctest: +SKIP
    >>> mined = mine_corpus(corpus, model, margin=0.2)         # doctest: +SKIP
    >>> mined.triplets, mined.round                            # doctest: +SKIP
    (46232, 0)
    """
    if (model is None) == (embeddings is None):
        raise InputError("mine_corpus takes either a model or embeddings")
    at_least_one(threads=threads)
    if "negatives" in options:
        raise InputError(f"mine_corpus takes kinds of negatives as kind=; found negatives={options['negatives']!r}")
    options = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
    of_packs = {field.name for field in fields(PackOptions)} & options.keys()
    packing = PackOptions(**{name: options.pop(name) for name in of_packs})
    mining = MiningOptions(negatives=kind_shares(kind), **options)
    with lock.hold(corpus.run_dir, lock.MINER, lock.TRAINER):  # the checkpoint is a trainer's to write
        before = Run(corpus.run_dir).newest_checkpoint()
        if model is None:
            given = _given(corpus, embeddings)
            digest = hashlib.sha256(given.tobytes()).hexdigest()
            round = _round_of(Run(corpus.run_dir), digest)
        else:
            given = None
            round, digest = _with_model(corpus, _network_of(model, corpus.feature, preprocess))
        try:
            return mine_round(round, digest, mining, packing, beam_options or in_process(), threads, given=given)
        except BaseException:
            ours = Run(corpus.run_dir).newest_checkpoint() != before
            if ours and not round.manifest.exists():  # it would be in the way of the next try
                folder, checksum = round.checkpoint.parent, round.checkpoint.with_suffix(".sha256")
                for path in (round.checkpoint, checksum, folder / EXTRAS):
                    path.unlink(missing_ok=True)
            raise


def _network_of(model: keras.Model | Path | str, feature: Feature, preprocess: str | None) -> Network:
    if isinstance(model, str | Path):
        return load_network(storage.location(model))
    shape = () if None in feature.shape else tuple(size for size in feature.shape if size)
    return Network(model, "the model", Extras(preprocess=preprocess, shape=shape))


def _with_model(corpus: Corpus, network: Network) -> tuple[Round, str]:
    """The round that a network mines, where its checkpoint is then, and the checkpoint's digest."""
    rows = corpus.split("train").read(np.arange(1))
    network = fit_network(network, corpus.feature, rows, is_trained_elsewhere=True)
    Embedder(network, corpus.feature)(rows)
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch, "model.keras")
        network.save(saved)
        digest = load_network(saved).digest()  # as it is read: layers may have other names in memory
        round = _round_of(Run(corpus.run_dir), digest)
        if not round.checkpoint.exists():
            copy_checkpoint(saved, round.checkpoint)
    return round, digest


def _given(corpus: Corpus, embeddings: Any) -> np.ndarray:
    """float32 [rows, dim]: a user's embeddings of the train split, on the grid."""
    found, rows = normalised(embeddings), corpus.split("train").rows
    if len(found) != rows:
        raise InputError(
            f"embeddings have {len(found)} rows, the train split of {corpus.run_dir} has {rows}. Embed corpus.rows()."
        )
    return to_grid(found)


def _round_of(run: Run, digest: str) -> Round:
    """The newest mined round if it was mined with that; else the next, whose checkpoint must not be another."""
    newest = run.newest_mined()
    if newest is None:
        round = run.round(0)
    else:
        held = manifests.read(newest.manifest, TripletsManifest, round=newest.number).checkpoint_digest
        round = newest if held == digest else newest.next
    if round.checkpoint.exists() and load_network(round.checkpoint).digest() != digest:
        raise InputError(
            f"{round.checkpoint} waits to be mined and is another than what was given. Give its path, remove it, or "
            f"ingest into another run directory."
        )
    return round
