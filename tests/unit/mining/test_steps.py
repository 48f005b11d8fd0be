"""What happens to one element: work items, merging, what is left of an interrupted run."""

import functools
import pickle
from collections import Counter
from dataclasses import replace

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that
from handmade import write_corpus, write_embeddings

from pipeline.files.layout import Round
from pipeline.files.manifests import Shard
from pipeline.mining import steps
from pipeline.mining.options import MiningOptions
from pipeline.mining.work import Item, Job, Tiling, list_items
from pipeline.packs.packs import PackOptions
from pipeline.process.beam import beam_options
from pipeline.triplets.columns import ANCHOR_BLOCK
from pipeline.triplets.rows import Found
from pipeline.triplets.scan import merge

VALUE_LIMIT = 12 << 20  # bytes of what one worker gathers, of 10^9 rows too
ENTRY = (9, Shard(file="t" * 40, records=1, bytes=1, sha256="0" * 64), Counter(packs=1))
TRIPLET_BYTES = 3 * 8 + 1 + 2 * 4


def job_of(run_dir, tiling=Tiling(), **options):  # noqa: B008  frozen
    return Job(
        round=Round(run_dir, 0), mining=MiningOptions(**options), packing=PackOptions(), tiling=tiling,
        corpus_fingerprint="f", checkpoint_digest="by hand",
    )  # fmt: skip


@pytest.mark.parametrize("pick", ["random", "nearest"])
@pytest.mark.parametrize("tiling", [Tiling(), Tiling(blocks=1, columns=7)], ids=str)
def test_work_items_cover_all_anchors_and_columns_once(tmp_path, pick, tiling):
    anchors, blocks = 5000, 130
    items = list(list_items(job_of(tmp_path, tiling, pick=pick), anchors, blocks))
    covered = [(item.number, column) for item in items for column in range(item.first_column, item.last_column)]
    numbers = -(-anchors // (tiling.blocks * ANCHOR_BLOCK))
    assert sorted(covered) == [(number, column) for number in range(numbers) for column in range(blocks)]
    assert (len(items) == numbers) == (pick == "random"), "an anchor's order of columns is never split"


def test_found_merges_in_a_pipeline_in_any_order():
    rng = np.random.default_rng(0)
    item = Item(number=3, first_column=0, last_column=1)
    parts = [
        Found(
            similarity=rng.integers(0, 4, (5, 2)).astype(np.float32),
            row=rng.integers(0, 50, (5, 2)),
            guarded=rng.random((5, 1)) < 0.3,
        )
        for _ in range(20)
    ]
    expected = functools.reduce(merge, parts)

    def same(merged):
        [(number, (_, found))] = merged
        assert number == 3
        for name in ("similarity", "row", "guarded"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))

    with TestPipeline(options=beam_options([], item)) as pipeline:
        elements = [(3, (item, parts[i])) for i in rng.permutation(20)]
        merged = pipeline | beam.Create(elements) | beam.Reshuffle() | beam.CombinePerKey(steps.MergeFound())
        assert_that(merged, same)


def test_the_work_folder_is_named_by_all_that_shapes_what_is_in_it(tmp_path):
    job = job_of(tmp_path)
    others = [
        job_of(tmp_path, margin=0.3), job_of(tmp_path, Tiling(blocks=1)), replace(job, checkpoint_digest="g"),
        replace(job, corpus_fingerprint="g"), replace(job, packing=PackOptions(fill=2)),
    ]  # fmt: skip
    assert len({other.work for other in [job, *others]}) == 6
    assert replace(job, threads=7, scan="gpu").work == job.work


def test_no_value_grows_too_large_with_the_triplets(tmp_path):
    """The manifest's entries are gathered by one worker, a shard's triplets by another."""
    job = job_of(tmp_path)
    for rows in (1, 4096, 10**6, 10**8, 10**9):
        assert job.shards(rows) * len(pickle.dumps(ENTRY)) < VALUE_LIMIT
        assert rows / job.shards(rows) * TRIPLET_BYTES < VALUE_LIMIT
    assert job.shards(140_000) == 35, "small rounds keep their shards, and with them their bytes"
    assert job_of(tmp_path, positives=2).shards(70_000) == job_of(tmp_path, anchors=140_000).shards(10**9) == 35


def scanned(job, written=1, on_device=False):
    step = steps.Scan(job)
    step.setup()
    step.on_device = on_device
    [(_, (_, found))] = step.process(Item(number=0, first_column=0, last_column=1), written)
    return found


def job_to_scan(run_dir, **options):
    """40 rows, embedded and dealt to one column block."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 4)).astype(np.float32)
    write_corpus(run_dir, [f"{row // 10}" for row in range(40)], vectors)
    write_embeddings(run_dir, np.eye(4, dtype=np.float32)[rng.integers(0, 4, 40)])
    job = job_of(run_dir, negatives=(("hard", 1.0),), **options)
    steps.storage.save_array(job.work / "anchors.npy", np.arange(40))
    deal, write = steps.DealColumns(job), steps.WriteColumns(job)
    deal.setup()
    dealt = [part for shard in range(4) for _, part in deal.process(shard)]
    list(write.process((0, dealt)))
    return job


@pytest.mark.parametrize("pick", ["random", "nearest"])
def test_a_device_leaves_the_same_file(tmp_path, pick):
    job = job_to_scan(tmp_path, pick=pick)
    files = []
    for on_device in (False, True):
        scanned(job, on_device=on_device)
        [path] = (job.work / "found").iterdir()
        files.append(steps.storage.read_arrays(path))
        path.unlink()
    for name, expected in files[0].items():
        np.testing.assert_array_equal(files[1][name], expected)
        assert files[1][name].dtype == expected.dtype


def test_what_a_scan_left_is_taken_over_and_what_it_left_half_is_made_again(tmp_path):
    job = job_to_scan(tmp_path)
    first = scanned(job)
    [path] = (job.work / "found").iterdir()
    marked = {**vars(first), "row": first.row + 1000}
    steps.storage.save_arrays(path, **marked)
    np.testing.assert_array_equal(scanned(job).row, first.row + 1000)
    whole = path.read_bytes()
    for spoiled in (b"PK half", b"", whole[:-30], whole[:200] + b"?" + whole[201:]):
        path.write_bytes(spoiled)
        np.testing.assert_array_equal(scanned(job).row, first.row)
    with pytest.raises(RuntimeError, match="0 column blocks were written, expected 1"):
        scanned(job, written=0)
