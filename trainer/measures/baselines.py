"""What a user has without any training: the payload itself, or its words."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.corpus.corpus import Corpus, Split
from pipeline.embedding.decoding import Inputs
from pipeline.errors import InputError
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.process.commands import log
from pipeline.reporting.results import Baselines, Measures
from trainer.measures.retrieval import queries_of, retrieval

BLOCK = 256
FITTED_ROWS = 100_000  # TF-IDF is fitted on so many texts at the most, evenly spaced
SIDE, VALUES = 32, 1 << 28  # images of different sizes, or of so many numbers in all, are compared at this side


def measure_baselines(corpus: Corpus, name: str) -> dict[str, Measures]:
    """How well a split's rows find each other by cosine, by what is compared; measured once for a run directory.

    Images: pixels. Vectors: as they come. Texts: TF-IDF of words and of characters, fitted on the train split.
    """
    path, split = Run(corpus.run_dir).baselines(name), corpus.split(name)
    found = manifests.read_if_there(path, Baselines, split=name)
    if found is None or found.corpus_fingerprint != corpus.fingerprint:
        label, query = split.class_of(np.arange(split.rows)), queries_of(corpus, split)
        measures: dict[str, Measures] = {}
        for title, matrix in _compared(corpus, split):
            try:
                measures[title] = dict(retrieval(matrix(), label, query))
            except InputError:  # of a damaged corpus: a ValueError, too
                raise
            except ValueError as error:  # as of TF-IDF where no text has a word
                log.warning("%s: %s goes without: %s", name, title, error)
        found = Baselines(split=name, corpus_fingerprint=corpus.fingerprint, measures=measures)
        manifests.write(path, found)
    return found.measures


def _compared(corpus: Corpus, split: Split) -> list[tuple[str, Callable[[], Any]]]:
    """Titles, and what makes [rows, n], L2-normalised: an array or a sparse matrix."""
    feature = corpus.feature
    if feature.kind == "text":
        kinds: dict[str, dict[str, Any]] = {"TF-IDF of words": WORDS, "TF-IDF of characters": CHARACTERS}
        return [(title, partial(tf_idf, corpus, split, **how)) for title, how in kinds.items()]
    shape = tuple(size or SIDE for size in feature.shape)
    if feature.kind == "image" and (None in feature.shape or split.rows * int(np.prod(shape)) > VALUES):
        shape = (min(shape[0], SIDE), min(shape[1], SIDE), shape[2])
    if split.rows * int(np.prod(shape)) > VALUES:
        log.warning("%s: too many rows to compare their payload", split.name)
        return []
    title = "vectors as given" if feature.kind == "vector" else f"pixels, {shape[0]} x {shape[1]}"
    return [(title, partial(payload, corpus, split, shape))]


def payload(corpus: Corpus, split: Split, shape: tuple[int, ...]) -> np.ndarray:
    """float32 [rows, values], images or vectors as numbers, L2-normalised. shape: that images are scaled to."""
    rows = np.arange(split.rows)
    values = [
        Inputs(corpus.feature, shape).of_records(tf.constant(split.read(part))).numpy().reshape(len(part), -1)
        for part in np.split(rows, rows[BLOCK::BLOCK])
    ]
    flat = np.concatenate(values)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)


WORDS = {"analyzer": "word", "token_pattern": r"(?u)\b\w+\b"}
CHARACTERS = {"analyzer": "char_wb", "ngram_range": (2, 4), "sublinear_tf": True}


def tf_idf(corpus: Corpus, split: Split, **how: Any) -> Any:
    """A sparse matrix [rows, terms], L2-normalised. how: for scikit-learn's TfidfVectorizer."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    step = -(-corpus.split("train").rows // FITTED_ROWS)

    def texts(name: str) -> Iterator[str]:
        return (row["text"] for row in corpus.rows(name))

    fitted = TfidfVectorizer(dtype=np.float32, **how).fit(itertools.islice(texts("train"), None, None, step))
    return fitted.transform(texts(split.name))
