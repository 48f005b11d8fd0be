"""Records in, embeddings out: whatever the calls, the same vectors; what is no embedding is refused."""

import keras
import numpy as np
import pytest
from handmade import write_corpus

from pipeline.embedding.embedder import BATCH, Embedder
from pipeline.embedding.network import Network
from pipeline.errors import InputError
from pipeline.triplets.rows import GRID, to_grid

ROWS = 2 * BATCH + 7


def embedder_of(corpus, *layers):
    inputs = keras.Input(corpus.feature.shape)
    model = keras.Model(inputs, keras.Sequential([*layers])(inputs))
    return Embedder(Network(model, "some.keras"), corpus.feature)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    vectors = np.random.default_rng(0).standard_normal((ROWS, 4)).astype(np.float32)
    vectors[5] = 0
    return write_corpus(tmp_path_factory.mktemp("corpus"), ["a"] * ROWS, vectors, shard_rows=100)


def test_embeddings_do_not_depend_on_the_call_and_lie_on_the_grid(corpus):
    keras.utils.set_random_seed(0)
    embedder = embedder_of(corpus, keras.layers.Dense(6, bias_initializer="ones"), keras.layers.UnitNormalization())
    split = corpus.split("train")
    whole = embedder.split(split)
    assert whole.shape == (ROWS, 6) and whole.dtype == np.float32
    np.testing.assert_array_equal(whole, to_grid(whole))
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=6 / GRID)
    rows = np.random.default_rng(0).permutation(ROWS)
    np.testing.assert_array_equal(embedder(split.read(rows)), whole[rows])
    assert embedder([]).shape == (0, 6) and embedder.split(corpus.split("eval")).shape == (0, 6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_unit_vectors_of_16_bits_are_unit_vectors(corpus, policy):
    """Their lengths are off by rounding alone: up to .4 %."""
    keras.utils.set_random_seed(0)
    layers = keras.layers.Dense(16, bias_initializer="ones", dtype=policy), keras.layers.UnitNormalization(dtype=policy)
    found = embedder_of(corpus, *layers).split(corpus.split("train"))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=16 / GRID)


def test_what_has_not_length_1_is_refused_by_its_rows(corpus):
    records = corpus.split("train").read(np.arange(10))
    with pytest.raises(InputError, match=r"some.keras: 1 of 10 embeddings .* rows \[105\], the first is zero"):
        embedder_of(corpus, keras.layers.UnitNormalization())(records, np.arange(100, 100 + len(records)))
    with pytest.raises(InputError, match=r"10 of 10 embeddings .* rows \[0, 1, 2, 3, 4\], the first is of length "):
        embedder_of(corpus, keras.layers.Dense(3, bias_initializer="ones"))(records)
    with pytest.raises(InputError, match="the first is NaN"):
        embedder_of(corpus, keras.layers.Rescaling(float("nan")))(records)
