"""Round 0's checkpoint: the network that ships, one's own, a file."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import copied

from pipeline.corpus.corpus import Corpus
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.network import Network, load_network
from pipeline.errors import InputError
from pipeline.files.layout import Run
from trainer import init, models
from trainer.options import InitOptions


def made(run_dir: Path, *arguments: str) -> Network:
    """The checkpoint that trainer.init makes."""
    assert init.main(["--run_dir", str(run_dir), *arguments]) == 0
    return load_network(Run(run_dir).round(0).checkpoint)


def test_the_weights_are_seeded_whatever_was_built_before(bare, small, tmp_path):
    models.dense((3,))  # Keras numbers the layers of a process
    digest = made(bare).digest()
    assert digest == load_network(Run(small).round(0).checkpoint).digest()
    shutil.rmtree(bare / "rounds")
    assert digest != made(bare, "--seed", "1").digest()


def test_a_checkpoint_that_is_there_stays(small_run, capsys):
    before = Run(small_run).round(0).checkpoint.read_bytes()
    assert init.main(["--run_dir", str(small_run)]) == 0
    folder = Run(small_run).round(0).checkpoint.parent
    assert f"is there already; nothing to do. For another, remove {folder} first" in capsys.readouterr().out
    with pytest.raises(InputError, match="is there already. Remove .* to choose another --model"):
        init.main(["--run_dir", str(small_run), "--model", "networks:dropout"])
    assert Run(small_run).round(0).checkpoint.read_bytes() == before


def test_untrained_statistics_have_seen_the_corpus(small):
    """Without that, an untrained network's embeddings all but coincide in inference mode, and round 0 mines noise."""
    corpus = Corpus.open(small)
    found = Embedder(load_network(Run(small).round(0).checkpoint), corpus.feature).split(corpus.split("train"))
    assert 2 - 2 * np.linalg.norm(found.mean(axis=0)) ** 2 > 0.15


def test_max_side_is_what_images_are_shrunk_to(bare, caplog):
    with caplog.at_level("INFO"):
        assert made(bare, "--max_side", "6").model.inputs[0].shape[1:] == (6, 6, 1)
    assert "images are shrunk from 8 x 8 to 6 x 6; less so: trainer.init --max_side" in caplog.text
    with pytest.raises(InputError, match="max_side must be at least 1; found 0"):
        InitOptions(max_side=0)


def test_a_keras_file_is_taken_as_it_is(bare, tmp_path):
    model = models.convolutional((8, 8, 1))
    model.save(tmp_path / "own.keras")
    assert made(bare, "--model", str(tmp_path / "own.keras")).digest() == Network(model, "").digest()


@pytest.mark.parametrize("name", ["networks:unnormalised", "trainer.models:convolutional"])
def test_what_gives_no_unit_vectors_is_normalised_once_and_that_is_said(bare, name, caplog):
    caplog.set_level("INFO", "triplet-miner")
    network, corpus = made(bare, "--model", name), Corpus.open(bare)
    assert ("UnitNormalization() was appended" in caplog.text) == (name == "networks:unnormalised")
    found = Embedder(network, corpus.feature)(corpus.split("eval").read(np.arange(20)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-2)
    assert [type(layer).__name__ for layer in network.model.layers].count("UnitNormalization") == 1


def test_ones_own_text_network_is_adapted(texts, tmp_path):
    words = made(copied(texts, tmp_path), "--model", "networks:vectorising").model.layers[1].get_vocabulary()
    assert len(words) == 50 and "my" in words


@pytest.mark.parametrize(
    ("kind", "model", "message"),
    [
        ("bare", "networks:zero", "not L2-normalised; rows .0., the first is zero"),
        ("bare", "networks:feature_map", r"gives \[1, 6, 6, 4\], expected \[batch, dim\].*pooling"),
        ("bare", "networks:two_outputs", r"expected \[batch, dim\]"),
        ("bare", "networks:vectorising", "takes string .*; found image"),
        ("bare", "json:dumps", "returned a str"),
        ("bare", "trainer.models:dense", r"cannot be built for examples of shape \(8, 8, 1\)"),
        ("bare", "none.keras", "none.keras is missing"),
        ("bare", "{file}", "is not a Keras model"),
        ("texts", "trainer.models:dense", r"cannot be built for examples of shape \(\)"),
        ("texts", "networks:numbers", "takes float32 .*; found text"),
        ("texts", "networks:text_to_pixels", r"expected \[batch, dim\]"),
    ],
)
def test_networks_that_do_not_fit_are_refused(request, tmp_path, kind, model, message):
    run_dir = request.getfixturevalue(kind)
    (tmp_path / "not.keras").write_text("nothing")
    with pytest.raises(InputError, match=message):
        init.main(["--run_dir", str(run_dir), "--model", model.format(file=tmp_path / "not.keras")])
    assert not Run(run_dir).round(0).checkpoint.exists()


def test_no_corpus(tmp_path):
    with pytest.raises(InputError, match="corpus.json is missing"):
        init.main(["--run_dir", str(tmp_path / "nowhere")])
