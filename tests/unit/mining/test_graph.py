"""The graph as an engine gets it, without an engine: Beam's portable form of it; and what its last step writes."""

import base64
import bz2
import functools
from collections import Counter
from dataclasses import replace

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2 as proto
from handmade import write_classes, write_corpus, write_embeddings

from pipeline.errors import InputError
from pipeline.files import manifests
from pipeline.files.layout import Round, Run
from pipeline.files.manifests import Shard
from pipeline.mining import graph
from pipeline.mining.options import MiningOptions
from pipeline.mining.work import Job
from pipeline.packs.packs import PackOptions, Packs
from pipeline.triplets.rows import Triplets

DATAFLOW_LIMIT = 10 << 20  # bytes of a job's graph
PAR_DO = common_urns.primitives.PAR_DO.urn
ROWS = 10**9


def job_of(run_dir, packs, **options):
    return Job(
        round=Round(run_dir, 0), mining=MiningOptions(**options), packing=PackOptions(packs=packs),
        corpus_fingerprint="f", checkpoint_digest="by hand",
    )  # fmt: skip


def portable(job, anchors):
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
    graph.build(pipeline, job, anchors)
    return pipeline.to_runner_api()


@pytest.fixture(scope="module", params=["triplets", "given", "spread"])
def large(request, tmp_path_factory):
    """The graph of a round over 10^9 rows in 1,000 classes, all of them anchors: of the corpus there is a manifest."""
    run_dir = tmp_path_factory.mktemp("large")
    corpus = write_corpus(run_dir, ["a", "b"], np.eye(2, dtype=np.float32))
    train = corpus.manifest.splits["train"]
    shard = replace(train.shards[0], records=ROWS // 100)
    first_rows = np.linspace(0, ROWS, 1001).astype(int).tolist()
    classes = [f"{c:04d}" for c in range(1000)]
    train = write_classes(corpus.directory, "train", classes, first_rows, shards=[shard] * 100)
    given = Shard(file="given.npy", records=ROWS, bytes=1, sha256="") if request.param == "given" else None
    manifest = replace(corpus.manifest, splits={**corpus.manifest.splits, "train": train}, given_triplets=given)
    manifests.write(Run(run_dir).corpus_manifest, replace(manifest, fingerprint=manifest.computed_fingerprint()))
    packs = "spread" if request.param == "spread" else "triplets"
    return portable(job_of(run_dir, packs), 0 if packs == "spread" else ROWS)


def par_dos(found):
    for transform in found.components.transforms.values():
        if transform.spec.urn == PAR_DO:
            yield transform, proto.ParDoPayload.FromString(transform.spec.payload)


def test_it_does_not_grow_with_the_rows(large):
    assert large.ByteSize() < DATAFLOW_LIMIT / 50


def test_every_function_survives_pickling_by_reference_to_installed_modules(large):
    pickled = [p.do_fn.payload for _, p in par_dos(large) if p.do_fn.urn == python_urns.PICKLED_DOFN_INFO]
    assert len(pickled) > 5
    for payload in pickled:
        assert pickler.loads(payload)
        assert b"__main__" not in bz2.decompress(base64.b64decode(payload))  # Beam packs them so


def test_nothing_is_unbounded_and_everything_is_in_one_window(large):
    for collection in large.components.pcollections.values():
        assert collection.is_bounded == proto.IsBounded.BOUNDED
        windowing = large.components.windowing_strategies[collection.windowing_strategy_id]
        assert windowing.window_fn.urn == common_urns.global_windows.urn


def entry(number):
    shard = Shard(file=f"t-{number}.tfrecord", records=1, bytes=1, sha256=f"{number}")
    counts = Counter({"packs": 1, "rows": 4, "corpus/semi-hard": 2, "pack/hard": 3})
    return number, shard, counts


def test_the_manifest_is_the_same_whatever_order_shards_come_in_and_if_it_is_written_twice(tmp_path):
    write_corpus(tmp_path, ["a", "a", "b"], np.eye(3, dtype=np.float32))
    write_embeddings(tmp_path, np.eye(3, dtype=np.float32))
    job, counts = job_of(tmp_path, "triplets"), Counter(pairs=3, fallback=1, guarded=2, anchors_without_positive=1)
    job.begin()
    graph.commit([entry(1), entry(0)], counts, job)
    first = job.round.manifest.read_bytes()
    graph.commit([entry(0), entry(1)], counts, job)
    assert job.round.manifest.read_bytes() == first
    found = manifests.read(job.round.manifest, graph.TripletsManifest)
    assert [shard.file for shard in found.shards] == ["t-0.tfrecord", "t-1.tfrecord"]
    assert (found.triplets, found.packs, found.rows, found.pairs, found.fallback) == (10, 2, 8, 3, 1)
    assert found.mean_norm == 0.5774
    assert found.counts == {"corpus": {"semi-hard": 4, "hard": 0}, "pack": {"semi-hard": 0, "hard": 6}}
    assert found.skipped["corpus"] == {"anchors_without_positive": 1} and found.guarded["corpus"] == 2


def test_a_job_that_goes_on_after_another_has_begun_writes_and_commits_nothing(tmp_path):
    """As on an engine that does not cancel it."""
    write_corpus(tmp_path, ["a", "a", "b"], np.eye(3, dtype=np.float32))
    write_embeddings(tmp_path, np.eye(3, dtype=np.float32))
    old, new = job_of(tmp_path, "triplets"), job_of(tmp_path, "triplets")
    old.begin()
    new.begin()
    step, ends = graph.steps.WriteShard(old), "another run of pipeline.mine went on with .*rounds/0000: this job ends"
    step.setup()
    none = np.empty(0, np.int64)
    packs = Packs(shard=0, rows=none, starts=none, triplets=Triplets.none(), triplet_starts=none)
    for act in (lambda: list(step.process(packs)), lambda: graph.commit([entry(0)], Counter(pairs=3), old)):
        with pytest.raises(InputError, match=ends):
            act()
    assert not old.round.triplets.exists()
    graph.commit([entry(0)], Counter(pairs=3), new)
    assert new.round.manifest.exists()


@pytest.mark.parametrize(
    ("embeddings", "why"),
    [
        (np.eye(3, dtype=np.float32), "A larger --margin, other --negatives or weaker guards"),
        (np.tile(np.eye(3, dtype=np.float32)[0], (3, 1)), "COLLAPSED: all embeddings lie together .their mean.*1.000"),
    ],
    ids=["spread out", "in one point"],
)
def test_a_round_without_triplets_is_refused_with_the_reason(tmp_path, embeddings, why):
    write_corpus(tmp_path, ["a", "a", "b"], np.eye(3, dtype=np.float32))
    write_embeddings(tmp_path, embeddings)
    job = job_of(tmp_path, "triplets")
    job.begin()
    commit = functools.partial(graph.commit, [(0, entry(0)[1], Counter(packs=0, skipped=1))])
    with pytest.raises(InputError, match=f"round 0 has no triplet, out of 4 pairs.*{why}"):
        commit(Counter(pairs=3), job)
    assert not job.round.manifest.exists()
