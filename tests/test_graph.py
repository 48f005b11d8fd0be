"""The graph as an engine gets it, without an engine: Beam's portable form of it."""

import base64
import bz2
import re
import sys
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2 as proto
from conftest import command as command_of

from benchmarks import scale
from pipeline import command, ingest, job, mine, records, selection
from pipeline.sources import encode_png

PICKLED = python_urns.PICKLED_DOFN_INFO
PAR_DO = common_urns.primitives.PAR_DO.urn
# What side inputs may come from: combined over everything, or made of one element.
ONE_VALUE = {"Count columns", "Sum counts", "Count embedded", "Count groups", "Deal groups"}
DATAFLOW_LIMIT = 10 << 20  # bytes of a job's graph
VALUE_LIMIT = 10 << 20  # bytes of what one worker gathers


def portable(build) -> proto.Pipeline:
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
    build(pipeline)
    return pipeline.to_runner_api()


def billion(spread: bool = False) -> proto.Pipeline:
    """A round over 10^9 rows, all anchors."""
    rule = selection.Rule(shares=(("semi-hard", 1.0),))
    job_ = mine.Job(run_dir=Path("/run"), round=0, rule=rule, packs="spread" if spread else "triplets")
    rows = 10**9
    shards = mine.triplet_shards(rows)
    if spread:
        return portable(lambda p: mine.spread_graph(p, job_, rows // mine.GROUP_ROWS, shards, shards))
    return portable(lambda p: mine.graph(p, job_, rows, selection.column_blocks(rows), shards, shards))


@pytest.fixture(scope="module")
def graphs(digits, tmp_path_factory):
    """Every graph that a run of ours hands to a runner, by the command; and mine's for 10^9 rows."""
    seen = {"mine of 10^9 rows": billion(), "spread packs of 10^9 rows": billion(spread=True)}
    run_dir = tmp_path_factory.mktemp("graphs") / "run"
    real = job.run

    def watch(options, build):
        seen[f"ingest {len(seen)}"] = portable(build)
        return real(options, build)

    patch = pytest.MonkeyPatch()
    patch.setattr(job, "run", watch)
    assert ingest.main(["--run_dir", str(run_dir), "--source", "digits"]) == 0
    patch.undo()
    assert len(seen) == 4
    return seen


def par_dos(graph: proto.Pipeline):
    for transform in graph.components.transforms.values():
        if transform.spec.urn == PAR_DO:
            yield transform, proto.ParDoPayload.FromString(transform.spec.payload)


def test_every_function_survives_pickling_by_reference_to_installed_modules(graphs):
    for graph in graphs.values():
        pickled = [p.do_fn.payload for _, p in par_dos(graph) if p.do_fn.urn == PICKLED]
        assert pickled
        for payload in pickled:
            assert pickler.loads(payload)
            assert b"__main__" not in bz2.decompress(base64.b64decode(payload))  # Beam packs them so


def test_nothing_is_unbounded_and_everything_is_in_one_window(graphs):
    for graph in graphs.values():
        for collection in graph.components.pcollections.values():
            assert collection.is_bounded == proto.IsBounded.BOUNDED
            windowing = graph.components.windowing_strategies[collection.windowing_strategy_id]
            assert windowing.window_fn.urn == common_urns.global_windows.urn


def test_side_inputs_are_single_values(graphs):
    found = set()
    for graph in graphs.values():
        made_by = {
            collection: transform.unique_name.split("/")[0]
            for transform in graph.components.transforms.values()
            for collection in transform.outputs.values()
        }
        for transform, payload in par_dos(graph):
            if transform.unique_name.split("/")[0] in ("Scan", "Commit", "Group", "Deal groups", "Write packs"):
                found |= {made_by[transform.inputs[tag]] for tag in payload.side_inputs}
    assert found == ONE_VALUE


def test_the_graph_does_not_grow_with_the_rows(graphs):
    assert all(graphs[f"{what} of 10^9 rows"].ByteSize() < DATAFLOW_LIMIT / 50 for what in ("mine", "spread packs"))


def test_ingests_graphs_do_not_grow_with_the_source(tmp_path, monkeypatch):
    sizes = []
    real = job.run

    def watch(options, build):
        sizes.append(portable(build).ByteSize())
        return real(options, build)

    monkeypatch.setattr(job, "run", watch)
    for classes, rows in ((2, 5), (30, 20)):
        for row in range(rows):
            for c in range(classes):
                path = tmp_path / f"{classes}-classes" / f"class-{c:03d}" / f"{row:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_png(np.full((2, 2), row, np.uint8)))
        source = f"images:{tmp_path / f'{classes}-classes'}"
        assert ingest.main(["--run_dir", str(tmp_path / f"{classes}-run"), "--source", source]) == 0
    few, many = sizes[:2], sizes[2:]
    assert all(abs(a - b) < 100 for a, b in zip(few, many, strict=True)), sizes


def test_items_listed_by_a_worker_cover_all_anchors_and_columns():
    job_ = mine.Job(run_dir=Path("/run"), round=0, rule=selection.Rule(pick="nearest"))
    anchors, blocks = 5000, 130
    size = mine.ITEM_BLOCKS * selection.ANCHOR_BLOCK
    covered = {
        (item.number, column)
        for item in mine.work_items(job_, anchors, blocks)
        for column in range(item.first_column, item.last_column)
    }
    assert covered == {(n, c) for n in range(-(-anchors // size)) for c in range(blocks)}


def test_no_key_is_hot_and_no_value_large_on_1000_workers():
    """Of a round over 10^7 rows, by the project's own hashes."""
    done = command_of("benchmarks.scale", "--rows", "10000000")
    assert done.returncode == 0 and "0 of 14 rows short" in done.stdout, done.stdout + done.stderr


def test_no_value_grows_too_large_with_the_triplets():
    """The manifest's entries are gathered by one worker, a shard's triplets by another."""
    for pairs in (1, 4096, 10**6, 10**8, 10**9):
        shards = mine.triplet_shards(pairs)
        assert shards * scale.entry_bytes(shards) < VALUE_LIMIT
        assert pairs / shards * scale.triplets_bytes(1) < VALUE_LIMIT
    assert mine.triplet_shards(140_000) == 35, "small rounds keep their shards, and with them their bytes"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--runner=PortableRunner"], "--job_endpoint"),
        (["--runner=PortableRunner", "--job_endpoint=localhost:1"], "answers at --job_endpoint localhost:1"),
        (["--runner=PortableRunner", "--job_endpoint=nonsense"], "--job_endpoint nonsense"),
        (["--runner=FlinkRunner"], "Install a Java 17 runtime"),
        (["--runner=SparkRunner"], "Install a Java 17 runtime"),
        (["--runner=DataflowRunner"], "apache-beam[gcp]"),
    ],
)
def test_an_engine_that_is_missing_is_named(options, said, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(sys.modules, "apitools.base", None)
    with pytest.raises(records.InputError, match=re.escape(said)):
        job.beam_options(options)


def test_options_come_from_a_file(digits, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(command.log, "propagate", True)
    (tmp_path / "engine.args").write_text("--runner=PortableRunner\n--job_endpoint=localhost:1\n")
    for module, source in ((ingest, ["--source", "digits"]), (mine, [])):
        code = command.once(module.main, ["--run_dir", str(digits), *source, f"@{tmp_path / 'engine.args'}"])
        assert code == 4 and "no job server answers at --job_endpoint localhost:1" in caplog.text
        caplog.clear()
