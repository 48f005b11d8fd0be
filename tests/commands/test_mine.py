"""Mining end to end: every triplet that the command writes, against the definitions."""

import functools
import json
import os
import re
import shutil

import numpy as np
import oracle
import pytest
from conftest import command, copied, packs_of
from corpora import NO_HOLD_OUT, make, write_images
from handmade import write_corpus
from scipy.stats import kstest

from pipeline import ingest, mine, records
from pipeline.corpus.corpus import Corpus
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.machine import gpu_names, machine_kind
from pipeline.embedding.network import load_network
from pipeline.embedding.store import EmbeddingStore
from pipeline.errors import InputError, WrongOption
from pipeline.files.layout import Run
from pipeline.files.tfrecords import make_example
from pipeline.mining import job
from pipeline.mining.manifest import open_triplets
from pipeline.mining.options import MiningOptions, parse_shares
from pipeline.mining.work import Tiling
from pipeline.packs.packs import PackOptions
from pipeline.packs.write import SCOPES
from pipeline.process.beam import beam_options
from pipeline.triplets.pairs import draw_positives, make_pairs
from pipeline.triplets.rows import Block
from pipeline.triplets.rule import KINDS, Rule
from pipeline.triplets.scan import choose, scan_nearest
from trainer import init, train, warmup


def mined_with(run_dir, *arguments):
    assert mine.main(["--run_dir", str(run_dir), *arguments]) == 0
    return manifest_of(run_dir)


def mined_by_function(run_dir, mining=MiningOptions(), tiling=Tiling(), threads=None):  # noqa: B008  frozen
    return job.mine(run_dir, mining, PackOptions(), beam_options([], mining), threads, tiling)


def manifest_of(run_dir):
    return open_triplets(Run(run_dir).round(0), Corpus.open(run_dir))


def embeddings_of(run_dir):
    """float32 [rows, dim] of a run's train split, computed apart from the mining job's files."""
    corpus, path = Corpus.open(run_dir), Run(run_dir).round(0).checkpoint
    split = corpus.split("train")
    return Embedder(load_network(path), corpus.feature)(split.read(np.arange(split.rows)))


@functools.cache
def truth(run_dir):
    """(labels, distances) of a run's train split."""
    split = Corpus.open(run_dir).split("train")
    return split.class_of(np.arange(split.rows)), oracle.distance(embeddings_of(run_dir))


def qualify(kind, margin, label, d, a, p, among):
    """The rows among `among` that are negatives of that kind of (a, p)."""
    other = label[among] != label[a]
    band = (d[a, among] > d[a, p]) & (d[a, among] < d[a, p] + margin) if kind == "semi-hard" else d[a, among] <= d[a, p]
    return among[other & band]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--pick", "nearest", "--positives", "3", "--margin", "0.1"],
        ["--negatives", "semi-hard:1,hard:3", "--pick", "random", "--seed", "5", "--margin", "0.05"],
        ["--negatives", "hard", "--pick", "nearest", "--pack_rows", "3"],
        ["--anchors", "100", "--positives", "2"],
        ["--pack_pick", "nearest", "--fill", "2", "--margin", "1.0"],
        ["--pick", "nearest", "--pack_pick", "random", "--margin", "0.05"],
    ],
    ids=" ".join,
)
def test_every_triplet_obeys_the_definitions(small, small_run, arguments):
    manifest = mined_with(small_run, *arguments)
    mining, packing = manifest.mining, manifest.packing
    kinds, margin = [kind for kind, _ in mining.negatives], mining.margin
    picks = {"corpus": mining.pick, "pack": packing.pack_pick or mining.pick}
    label, d = truth(small)
    split, every = Corpus.open(small_run).split("train"), np.arange(len(label))

    corpus_pairs, seen, places, written = set(), [], [], packs_of(small_run)
    for pack in written:
        rows = pack["row"]
        assert len(set(rows)) == len(rows) <= packing.pack_rows
        np.testing.assert_array_equal([split.labels[c].encode() for c in label[rows]], pack["label"])
        assert split.read(rows) == [
            make_example({"id": [i], "label": [c], "image": [image]})
            for i, c, image in zip(pack["id"], pack["label"], pack["image"], strict=True)
        ]
        anchor, positive, negative = (rows[pack[side]] for side in ("anchor", "positive", "negative"))
        np.testing.assert_array_equal(pack["d_ap"], d[anchor, positive].astype(np.float32))
        np.testing.assert_array_equal(pack["d_an"], d[anchor, negative].astype(np.float32))
        pairs = set(zip(anchor.tolist(), positive.tolist(), strict=True))
        assert len(pairs) == len(anchor), "a pair has at most one triplet in a pack"
        for a, p, n, kind, scope in zip(anchor, positive, negative, pack["kind"], pack["scope"], strict=True):
            assert a != p and label[a] == label[p] != label[n]
            among = every if SCOPES[scope] == "corpus" else np.sort(rows)
            allowed = qualify(KINDS[kind], margin, label, d, a, p, among)
            assert n in allowed
            if picks[SCOPES[scope]] == "nearest":
                assert n == min(allowed, key=lambda row: (d[a, row], row))
            elif len(allowed) > 1:
                places.append((np.searchsorted(allowed, n) + 0.5) / len(allowed))
            if SCOPES[scope] == "corpus":
                corpus_pairs.add((int(a), int(p)))
                seen.append(a)
        if not packing.lone:  # every pair left out has no negative in the pack
            left = {(a, p) for a in rows for p in rows if a != p and label[a] == label[p]} - pairs
            for a, p in left:
                assert not any(len(qualify(kind, margin, label, d, a, p, np.sort(rows))) for kind in kinds)
    if "random" in picks.values():
        assert kstest(places[:4000], "uniform").pvalue > 1e-4

    # No anchor is missing without a counted reason.
    anchors, skipped = mining.anchors or len(label), manifest.skipped["corpus"]
    assert manifest.pairs == anchors * mining.positives  # every digit has more rows
    assert len(corpus_pairs) == len(seen) == sum(manifest.counts["corpus"].values())
    assert len(seen) + sum(skipped.values()) == manifest.pairs and skipped["anchors_without_positive"] == 0
    for a in set(every.tolist()) - set(seen) if mining.anchors is None else ():
        # With all its positives tried or one of them: at least one drawn pair must have nothing.
        classmates = [p for p in np.flatnonzero(label == label[a]) if p != a]
        assert any(not any(len(qualify(k, margin, label, d, a, p, every)) for k in kinds) for p in classmates)
    assert manifest.triplets == sum(len(pack["anchor"]) for pack in written)
    assert manifest.rows == sum(len(pack["row"]) for pack in written)


@pytest.mark.parametrize("fill", [2, 4])
def test_classes_in_packs_are_filled_and_no_further(small, small_run, fill):
    mined_with(small_run, "--pack_rows", "16", "--fill", str(fill))
    label, _ = truth(small)
    counts = [np.unique(label[pack["row"]], return_counts=True)[1] for pack in packs_of(small_run)]
    assert min(map(min, counts)) >= fill
    classes = [len(count) for count in counts]
    assert max(classes) <= 16 // fill and np.median(classes) > 8 // fill


def test_mining_again_says_so_and_changes_nothing(small_mined, tmp_path, capsys):
    run_dir = copied(small_mined, tmp_path)

    def times():
        return {path: path.stat().st_mtime_ns for path in run_dir.rglob("[!.]*") if path.is_file()}

    before = times()
    assert mine.main(["--run_dir", str(run_dir)]) == 0
    assert "round 0 is mined already; nothing to do" in capsys.readouterr().out
    for name, value in (("margin", "0.3"), ("fill", "2"), ("pack_pick", "nearest")):
        with pytest.raises(InputError, match=f"mined already with {name} .*, asked for {value}"):
            mine.main(["--run_dir", str(run_dir), f"--{name}", value])
    assert before == times()


def test_the_same_triplets_for_other_threads_and_items(small_mined, small_run):
    found = mined_by_function(small_run, tiling=Tiling(blocks=1), threads=3)
    assert found.triplet_digest == manifest_of(small_mined).triplet_digest


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """6,000 vectors in several corpus shards, column blocks and triplet shards."""
    rng, run_dir = np.random.default_rng(0), tmp_path_factory.mktemp("vectors")
    labels = np.repeat(np.arange(100), 60)
    write_corpus(
        run_dir, [f"{c:02d}" for c in labels],
        (rng.standard_normal((100, 8))[labels] + rng.standard_normal((6000, 8))).astype(np.float32), shard_rows=4096,
    )  # fmt: skip
    assert init.main(["--run_dir", str(run_dir), "--model", "networks:identity"]) == 0
    return run_dir


def test_nearest_split_over_column_lists_is_the_same(vectors, tmp_path):
    digests, mining = set(), MiningOptions(pick="nearest", negatives=parse_shares("semi-hard,hard"))
    for name, tiling in (("whole", Tiling()), ("split", Tiling(blocks=3, columns=1))):
        run_dir = shutil.copytree(vectors, tmp_path / name)
        digests.add(mined_by_function(run_dir, mining, tiling).triplet_digest)
        assert len(manifest_of(run_dir).shards) == 2
    assert len(digests) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_names(), reason="TensorFlow sees no GPU here")
@pytest.mark.parametrize("pick", ["random", "nearest"])
def test_a_gpu_mines_the_same_triplets(vectors, tmp_path, pick):
    runs = {scan: copied(vectors, tmp_path / scan) for scan in ("cpu", "gpu")}
    digests = [mined_with(run, "--pick", pick, "--scan", scan).triplet_digest for scan, run in runs.items()]
    assert digests[0] == digests[1]


@pytest.mark.skipif(bool(gpu_names()), reason="TensorFlow sees a GPU here")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_embedded(small_run):
    told = r"--scan gpu: TensorFlow sees no GPU on this machine, only its CPU \(\d+ cores\)\. .* or leave --scan out"
    with pytest.raises(InputError, match=told):
        mine.main(["--run_dir", str(small_run), "--scan", "gpu"])
    assert not (Run(small_run).round(0).path / "embeddings").exists()


def test_the_command_speaks_plainly(small_run):
    done = command("pipeline.mine", "--run_dir", small_run)
    assert done.returncode == 0, done.stderr
    assert re.match(r"round 0: [\d,]+ triplets in \d+ packs of [\d,]+ rows", done.stdout)
    assert "over the whole corpus 209 semi-hard" in done.stdout
    assert done.stdout.endswith(f"next: python -m trainer.train --run_dir {small_run}\n")
    progress = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} INFO (embed|columns|scan|write): \d+ of \d+ .*"
    tensorflows = r"WARNING: All log messages before absl.*|I0000 .*"  # before it reads any setting
    assert not [line for line in done.stderr.splitlines() if not re.fullmatch(f"{progress}|{tensorflows}", line)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--margin", "0"], "margin must be above 0"),
        (["--negatives", "easy"], "kinds out of semi-hard, hard"),
        (["--negatives", "hard:x"], "hard:x"),
        (["--pack_rows", "5"], "pack_rows must be 3"),
        (["--fill", "1"], "fill must be at least 2"),
        (["--fill", "65"], "hold two classes of 65"),
        (["--pack_rows", "3", "--pack_pick", "nearest"], "does nothing for lone triplets"),
        (["--anchors", "0"], "anchors must be at least 1"),
    ],
)
def test_options_out_of_their_range_end_with_code_2(small, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        mine.main(["--run_dir", str(small), *arguments])
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert stopped.value.code == 2 and message in said


def test_an_option_that_there_is_none_of_is_refused(small):
    with pytest.raises(WrongOption, match="unknown option --posetives; did you mean --positives?"):
        mine.main(["--run_dir", str(small), "--posetives", "2"])


@pytest.mark.parametrize("pick", ["random", "nearest"])
def test_guards_hold_through_the_whole_command(tmp_path, pick):
    """Each triplet against the oracle with copies, groups and both distance guards, and many small shards."""
    rng, run_dir = np.random.default_rng(0), tmp_path / "run"
    label = np.repeat(np.arange(12), 10)
    vectors = rng.standard_normal((12, 8))[label] * 0.3 + rng.standard_normal((120, 8))
    vectors[100:115] = vectors[rng.integers(0, 100, 15)]
    groups = [f"g{group}" for group in rng.integers(0, 20, 120)]
    write_corpus(run_dir, [f"{c:02d}" for c in label], vectors.astype(np.float32), groups=groups, shard_rows=9)
    assert warmup.main(["--run_dir", str(run_dir), "--steps", "5"]) == 0
    mining = MiningOptions(
        negatives=parse_shares("semi-hard,hard"), margin=0.4, positives=3, pick=pick, min_negative_distance=0.05,
        min_negative_ratio=0.9,
    )  # fmt: skip
    assert mined_by_function(run_dir, mining, Tiling(columns=2)).guarded["corpus"] > 0
    split = Corpus.open(run_dir).split("train")
    assert split.copies and split.grouped and len(split.shards) == 14
    label, d = truth(run_dir)
    content, group = (split.codes(name, np.arange(split.rows)) for name in ("content", "group"))
    rule = mining.rule(0)
    for pack in packs_of(run_dir):
        sides = [pack["row"][pack[side]] for side in ("anchor", "positive", "negative")]
        for a, p, n, kind, scope in zip(*sides, pack["kind"], pack["scope"], strict=True):
            if SCOPES[scope] == "corpus":
                oracle.check(rule, d, label, (a, p, n, kind), content, group)
            else:
                assert p in oracle.positives(a, label, content)
                assert n in oracle.negatives(KINDS[kind], rule, d, a, p, label, content, group)
        assert [g.decode() for g in pack["group"]] == [groups[row] for row in pack["row"]]


def test_nearest_semi_hard_is_tensorflow_addons_choice_inside_the_margin(small):
    """Addons: the smallest d_an beyond d_ap. Wherever that lies inside the margin, it is our choice too."""
    label, d = truth(small)
    rows, embedding = np.arange(len(label)), embeddings_of(small)
    rule = Rule(pick="nearest", positives=2, margin=0.1)
    own, block = Corpus.open(small).split("train").class_ranges(rows), Block(row=rows, embedding=embedding)
    positive = draw_positives(rule, rows, own)
    pairs = make_pairs(rule, block, own, positive, embedding[positive])
    triplets, _ = choose(rule, pairs, scan_nearest(rule, pairs, [block], 2))
    ours = {(a, p): n for a, p, n in zip(triplets.anchor, triplets.positive, triplets.negative, strict=True)}
    for a, p in zip(np.repeat(rows, 2), positive.ravel(), strict=True):
        beyond = np.where((label != label[a]) & (d[a] > d[a, p]), d[a], np.inf)
        addons = int(np.argmin(beyond))
        assert ours.get((a, p)) == (addons if beyond[addons] < d[a, p] + rule.margin else None)
    assert len(ours) > 100


def test_what_an_interrupted_run_left_is_continued_or_cleared(small_mined, small_run):
    """Embeddings are taken over if they are whole and made again if not; stray shards and half files go."""
    round = Run(small_run).round(0)
    shutil.copytree(Run(small_mined).round(0).path / "embeddings", round.path / "embeddings")
    [stored] = (round.path / "embeddings").rglob("*.npy")
    damaged = np.load(stored)
    damaged[:100] = 0
    np.save(stored, damaged)
    round.triplets.mkdir()
    stale = round.triplets / "triplets-00007-of-00009.tfrecord"
    stale.write_bytes(b"half")
    (round.path / "work" / "another").mkdir(parents=True)
    assert mined_with(small_run).triplet_digest == manifest_of(small_mined).triplet_digest
    assert not stale.exists() and not (round.path / "work").exists()
    assert records.main(["verify", str(small_run)]) == 0


def test_a_run_that_was_stopped_after_its_manifest_is_tidied_up(small_mined, tmp_path):
    run_dir = copied(small_mined, tmp_path)
    round = Run(run_dir).round(0)
    round.stats.unlink()
    (round.path / "work" / "key").mkdir(parents=True)
    assert mined_with(run_dir) == manifest_of(small_mined) and not (round.path / "work").exists()


def test_a_round_without_any_triplet_is_refused(small_run):
    """A band narrower than the grid holds nothing."""
    with pytest.raises(InputError, match="round 0 has no triplet, out of 209 pairs"):
        mine.main(["--run_dir", str(small_run), "--margin", "1e-9"])
    assert not Run(small_run).round(0).manifest.exists()


def test_a_corpus_that_cannot_be_mined_is_refused(tmp_path):
    write_corpus(tmp_path, ["a", "a", "a"], np.eye(3, dtype=np.float32))
    with pytest.raises(InputError, match="has no checkpoint. Make a first one: python -m trainer.init"):
        mine.main(["--run_dir", str(tmp_path)])
    assert init.main(["--run_dir", str(tmp_path), "--model", "networks:identity"]) == 0
    with pytest.raises(InputError, match="1 class to train on; a negative needs two"):
        mine.main(["--run_dir", str(tmp_path)])
    with pytest.raises(InputError, match="corpus.json is missing. Make it: python -m pipeline.ingest"):
        mine.main(["--run_dir", str(tmp_path / "elsewhere")])


def test_a_checkpoint_that_changes_meanwhile_is_refused(small, small_run):
    """Between what the command read and what a worker reads."""
    options = MiningOptions()
    step = job.graph.steps.EmbedShard(
        job.Job(
            round=Run(small_run).round(0), mining=options, packing=PackOptions(), checkpoint_digest="0" * 64,
            corpus_fingerprint=Corpus.open(small_run).fingerprint,
        )
    )  # fmt: skip
    step.setup()
    with pytest.raises(InputError, match="changed while its round was mined: .*, at the start 0{12}. Mine again"):
        list(step.process(0))


def test_what_another_kind_of_machine_embedded_is_embedded_again_and_said(small_mined, tmp_path, monkeypatch, caplog):
    """A round's embeddings come from one kind. Of a round that is mined, any machine reads them."""
    run_dir, expected = copied(small_mined, tmp_path), manifest_of(small_mined)
    assert expected.embedded_on == [machine_kind()]
    round = Run(run_dir).round(0)
    store = EmbeddingStore(round, Corpus.open(run_dir), expected.checkpoint_digest)
    shutil.rmtree(round.triplets)
    store.write(0, np.roll(store.embeddings(np.arange(store.split.rows)), 1, axis=0), "another kind")
    again = mined_with(run_dir)
    assert "another kind of machine (another kind) is embedded again on this one (" in caplog.text
    assert (again.triplet_digest, again.embedded_on) == (expected.triplet_digest, [machine_kind()])
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine_kind() not in again.embedded_on
    assert mine.main(["--run_dir", str(run_dir)]) == 0  # mined already
    assert train.main(["--run_dir", str(run_dir), "--memory_rows", "100"]) == 0
    assert store.machines() == again.embedded_on


def test_work_that_another_kind_of_machine_left_is_not_gone_on_with(small_mined):
    """It was found among other embeddings."""
    asked = {"mining": MiningOptions(), "packing": PackOptions(), "corpus_fingerprint": "c", "checkpoint_digest": "d"}
    kinds = ("this", "another")
    works = {job.Job(round=Run(small_mined).round(0), machine=kind, **asked).work for kind in kinds}
    assert len(works) == 2


def test_a_payload_that_ends_in_nul_bytes_stays_as_it_is(tmp_path):
    """As camera files padded to a block do."""
    write_images(tmp_path / "source", classes=3, each=8)
    files = sorted((tmp_path / "source").rglob("*.png"))
    for path in files[::2]:
        path.write_bytes(path.read_bytes() + bytes(7))
    run_dir = tmp_path / "run"
    make(run_dir, f"images:{tmp_path / 'source'}", **NO_HOLD_OUT)
    assert init.main(["--run_dir", str(run_dir)]) == 0
    mined_with(run_dir, "--negatives", "semi-hard,hard")
    packed: dict[bytes, bytes] = {}
    for pack in packs_of(run_dir):
        packed |= zip(pack["id"], pack["image"], strict=True)
    assert any(image.endswith(bytes(7)) for image in packed.values())
    assert all((tmp_path / "source" / os.fsdecode(id)).read_bytes() == image for id, image in packed.items())


def test_the_result_is_json_if_asked_for(small_mined, tmp_path, capsys):
    assert mine.main(["--run_dir", str(copied(small_mined, tmp_path)), "--json"]) == 0
    told, manifest = json.loads(capsys.readouterr().out), manifest_of(small_mined)
    assert told["already"] and told["round"] == 0
    assert (told["triplets"], told["counts"]) == (manifest.triplets, manifest.counts)
    assert told["triplet_digest"] == manifest.triplet_digest


def test_a_collapsed_network_is_said_though_triplets_are_found(tmp_path, capsys):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 8)).astype(np.float32) * 0.01 + 1
    np.savez(tmp_path / "v.npz", vectors=vectors, labels=np.repeat(np.arange(5), 40).astype(str))
    run = ["--run_dir", str(tmp_path / "run")]
    assert ingest.main([*run, "--source", f"arrays:{tmp_path}/v.npz"]) == 0
    assert init.main([*run, "--model", "networks:identity"]) == 0
    capsys.readouterr()
    for _ in range(2):  # the second time it is mined already
        assert mine.main([*run, "--negatives", "semi-hard,hard"]) == 0
        assert "COLLAPSED: all embeddings lie together (their mean has norm 1.000)" in capsys.readouterr().out
