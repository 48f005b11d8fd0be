"""The scan in `keras.ops` against the one in numba: the same, bit for bit, on whatever Keras' backend computes with."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
from blocks import RULES, dealt, grid_vectors, labelled_block, own_ranges, pairs_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.triplets import device, scan
from pipeline.triplets.pairs import make_pairs
from pipeline.triplets.rows import Block, Found
from pipeline.triplets.rule import Rule


def block_of(seed, rows, classes, integers, groups):
    """`labelled_block`, no vector longer than 1: what both scans are for."""
    label, block = labelled_block(seed, rows, classes, integers, groups)
    return label, replace(block, embedding=block.embedding / 2) if integers else block


BLOCKS = st.builds(
    block_of, seed=st.integers(0, 10_000), rows=st.integers(2, 60), classes=st.integers(1, 12), integers=st.booleans(),
    groups=st.booleans(),
)  # fmt: skip
FEW_SHAPES = RULES.filter(lambda rule: rule.positives in (1, 3))  # XLA compiles each number of slots anew


def scanned(rule, pairs, columns, threads=1, width=256, anchors=(16, 16)):
    """By numba, and on the device."""
    blocks = len(columns)
    if rule.pick == "nearest":
        stacks = [columns[: blocks // 2], columns[blocks // 2 :]]
        parts = [
            device.scan_nearest(rule, pairs, device.upload(stack, width), anchors)
            for stack in stacks if stack
        ]  # fmt: skip
        return scan.scan_nearest(rule, pairs, columns, threads), scan.merge(parts[0], parts[-1])
    on_device = [device.upload([column], width) for column in columns]
    return (
        scan.scan_random(rule, pairs, 0, columns.__getitem__, blocks, threads),
        device.scan_random(rule, pairs, 0, on_device.__getitem__, blocks),
    )


def assert_same(one: Found, other: Found):
    for name in ("similarity", "row", "guarded"):
        expected, found = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


@given(rule=FEW_SHAPES, data=BLOCKS, blocks=st.sampled_from([1, 3]))
@settings(max_examples=30, deadline=None)
def test_the_device_finds_what_numba_finds(rule, data, blocks):
    label, block = data
    assert_same(*scanned(rule, pairs_of(rule, label, block), dealt(rule, block, blocks)))


@pytest.mark.parametrize("pick", ["nearest", "random"])
def test_over_several_tiles_and_anchor_blocks(pick):
    label, block = block_of(1, 2500, 9, integers=False, groups=True)
    rule = Rule(pick=pick, shares=(("semi-hard", 1.0), ("hard", 1.0)), positives=2, min_negative_ratio=0.95)
    assert_same(*scanned(rule, pairs_of(rule, label, block), dealt(rule, block, 5), threads=2, width=768))


def test_a_part_of_the_anchors_draws_what_all_of_them_draw():
    label, block = block_of(2, 700, 5, integers=True, groups=False)
    rule, here = Rule(margin=1.0), slice(256, 700)
    pairs, columns = pairs_of(rule, label, block), dealt(rule, block, 3)
    whole, _ = scanned(rule, pairs, columns)
    embedding = block.embedding[np.maximum(pairs.positive[here], 0)]
    part = make_pairs(rule, block.take(here), own_ranges(label)[here], pairs.positive[here], embedding)
    on_device = [device.upload([column], width=256) for column in columns]
    found = device.scan_random(rule, part, 1, on_device.__getitem__, 3)
    np.testing.assert_array_equal(found.row, whole.row[here])


@pytest.mark.parametrize("pick", ["nearest", "random"])
def test_the_longest_vectors_and_the_largest_numbers(pick):
    """Similarities of exactly 1 and -1, and of 2047/2048, which takes all 11 bits of TF32."""
    axes = np.concatenate([np.eye(4, dtype=np.float32), -np.eye(4, dtype=np.float32)])
    near = axes * np.float32(2047 / 2048)
    label, (_, block) = np.arange(16) % 4, labelled_block(0, 16, 4)
    order = np.argsort(label, kind="stable")
    block = replace(block, embedding=np.concatenate([axes, near])[order], content=None)
    rule = Rule(pick=pick, shares=(("hard", 1.0), ("semi-hard", 1.0)), margin=4.0, positives=3)
    assert_same(*scanned(rule, pairs_of(rule, label[order], block), dealt(rule, block, 2)))


@pytest.mark.gpu
@pytest.mark.skipif(
    not any(name.startswith("gpu") for name in keras.distribution.list_devices()), reason="Keras sees no GPU here"
)
@pytest.mark.parametrize("pick", ["nearest", "random"])
def test_whole_tiles_on_a_gpu(pick):
    """TF32 and float32 sums of its matrix units."""
    rng = np.random.default_rng(0)
    label = np.sort(rng.integers(0, 500, 20_000))
    block = Block(row=np.arange(20_000), embedding=grid_vectors(rng, 20_000, 128))
    rule = Rule(pick=pick, shares=(("semi-hard", 1.0), ("hard", 1.0)), positives=2)
    pairs, columns = pairs_of(rule, label, block), dealt(rule, block, 5)
    assert_same(*scanned(rule, pairs, columns, os.cpu_count() or 1, device.WIDTH, device.ANCHORS))


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() == "jax" or not importlib.util.find_spec("jax"), reason="no JAX, or this is JAX already"
)
def test_the_same_source_on_jax():
    call = [sys.executable, "-m", "pytest", "--noconftest", __file__]
    done = subprocess.run(call, capture_output=True, text=True, env=os.environ | {"KERAS_BACKEND": "jax"})
    assert done.returncode == 0, done.stdout
