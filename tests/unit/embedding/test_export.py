"""Embeddings as one file for others: .npz and Parquet."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.embedding.export import COLUMNS, write_npz, write_parquet

VECTORS = np.arange(10, dtype=np.float32).reshape(5, 2)
TEXTS = {"id": ["a", "", "ü/ö", "d", "e"], "label": ["x", "x", "a longer label", "y", "y"], "split": ["train"] * 5}


def chunks(*cuts):
    for start, stop in zip((0, *cuts), (*cuts, 5), strict=True):
        yield VECTORS[start:stop], {name: column[start:stop] for name, column in TEXTS.items()}


def read_npz(path):
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["vectors"], {name: arrays[f"{name}s"].tolist() for name in COLUMNS}


def read_parquet(path):
    table = pq.read_table(path)
    vectors = np.array(table["embedding"].to_pylist(), np.float32).reshape(-1, 2)
    return vectors, {name: table[name].to_pylist() for name in COLUMNS}


@pytest.mark.parametrize(("write", "read"), [(write_npz, read_npz), (write_parquet, read_parquet)])
def test_rows_come_with_their_texts_however_they_are_cut(tmp_path, write, read):
    for cuts in ((), (2,), (1, 4)):
        write(tmp_path / "e.npz", 2, chunks(*cuts))
        vectors, texts = read(tmp_path / "e.npz")
        np.testing.assert_array_equal(vectors, VECTORS)
        assert vectors.dtype == np.float32 and texts == TEXTS


@pytest.mark.parametrize(("write", "read"), [(write_npz, read_npz), (write_parquet, read_parquet)])
def test_a_split_without_rows_is_a_file_without_rows(tmp_path, write, read):
    write(tmp_path / "e.npz", 2, iter(()))
    vectors, texts = read(tmp_path / "e.npz")
    assert vectors.shape == (0, 2) and texts == {name: [] for name in COLUMNS}
