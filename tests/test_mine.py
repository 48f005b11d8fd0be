"""Mining end to end: every triplet that the command writes, against the definitions."""

import functools
import json
import re
import shutil
import threading

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that
from conftest import command, read_packs
from scipy.stats import kstest
from test_ingest import write_images

from pipeline import embed, ingest, job, mine, records, selection
from pipeline.embed import Embedder
from pipeline.pool import Pool
from pipeline.records import InputError
from pipeline.selection import KINDS
from tests import oracle
from trainer import train


@functools.cache
def truth(run_dir):
    """(labels, distances) of a run's train split, computed apart from the mining job's files."""
    corpus = records.open_corpus(run_dir)
    split = corpus.split("train")
    rows = np.arange(split.rows)
    embedding = Embedder(records.checkpoint_path(run_dir, 0), corpus)(split.read(rows)).astype(np.float64)
    return split.class_of(rows), 2 - 2 * embedding @ embedding.T


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
        ["--anchors", "300", "--class_pool", "6", "--positives", "2"],
        ["--pack_pick", "nearest", "--fill", "2", "--margin", "1.0"],
        ["--pick", "nearest", "--pack_pick", "random", "--margin", "0.05"],
    ],
    ids=" ".join,
)
def test_every_triplet_obeys_the_definitions(fresh_run, arguments):
    assert mine.main(["--run_dir", str(fresh_run), *arguments]) == 0
    corpus = records.open_corpus(fresh_run)
    manifest = records.open_triplets(fresh_run, 0, corpus)
    options, margin = manifest["options"], manifest["margin"]
    kinds = list(options["shares"])
    asked = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert options["pack_pick"] == asked.get("--pack_pick", options["pick"])
    label, d = truth(fresh_run)
    split = corpus.split("train")

    pooled = np.arange(len(label))
    written = read_packs(fresh_run)
    if options["class_pool"]:
        classes = np.unique(label[np.concatenate([pack["row"] for pack in written])])
        assert len(classes) <= options["class_pool"]
        pool = Pool(fresh_run, 0, "", class_pool=6, seed=options["seed"])
        assert set(classes) <= set(pool.classes.tolist())
        pooled = np.flatnonzero(np.isin(label, pool.classes))

    corpus_pairs, seen, places = set(), [], []
    for pack in written:
        rows = pack["row"]
        assert len(set(rows)) == len(rows) <= max(options["pack_rows"], 3)
        np.testing.assert_array_equal([split.labels[c].encode() for c in label[rows]], pack["label"])
        assert split.read(rows) == [
            records.make_example({"id": [i], "label": [c], "image": [image]})
            for i, c, image in zip(pack["id"], pack["label"], pack["image"], strict=True)
        ]
        anchor, positive, negative = (rows[pack[side]] for side in ("anchor", "positive", "negative"))
        np.testing.assert_array_equal(pack["d_ap"], d[anchor, positive].astype(np.float32))
        np.testing.assert_array_equal(pack["d_an"], d[anchor, negative].astype(np.float32))
        pairs = set(zip(anchor.tolist(), positive.tolist(), strict=True))
        assert len(pairs) == len(anchor), "a pair has at most one triplet in a pack"
        for a, p, n, kind, scope in zip(anchor, positive, negative, pack["kind"], pack["scope"], strict=True):
            assert a != p and label[a] == label[p] != label[n]
            among, pick = (pooled, "pick") if records.SCOPES[scope] == "corpus" else (np.sort(rows), "pack_pick")
            allowed = qualify(KINDS[kind], margin, label, d, a, p, among)
            assert n in allowed
            if options[pick] == "nearest":
                assert n == min(allowed, key=lambda row: (d[a, row], row))
            elif len(allowed) > 1:
                places.append((np.searchsorted(allowed, n) + 0.5) / len(allowed))
            if records.SCOPES[scope] == "corpus":
                corpus_pairs.add((int(a), int(p)))
                seen.append(a)
        if options["pack_rows"] > 3:  # every pair left out has no negative in the pack
            left = {(a, p) for a in rows for p in rows if a != p and label[a] == label[p]} - pairs
            for a, p in left:
                assert not any(len(qualify(kind, margin, label, d, a, p, np.sort(rows))) for kind in kinds)
    if "random" in (options["pick"], options["pack_pick"]) and options["pack_rows"] > 3:
        assert kstest(places[:4000], "uniform").pvalue > 1e-4

    # No anchor is missing without a counted reason.
    anchors = min(options["anchors"] or len(pooled), len(pooled))
    skipped = manifest["skipped"]["corpus"]
    assert manifest["pairs"]["corpus"] == anchors * options["positives"]  # every digit has hundreds of rows
    assert len(corpus_pairs) == len(seen) == sum(manifest["counts"]["corpus"].values())
    assert len(seen) + sum(skipped.values()) == anchors * options["positives"]
    assert skipped["anchors_without_positive"] == 0
    if not options["anchors"]:
        for a in set(range(len(label))) - set(seen):
            # With all its positives tried or one of them: at least one drawn pair must have nothing.
            assert any(
                not any(len(qualify(kind, margin, label, d, a, p, pooled)) for kind in kinds)
                for p in np.flatnonzero(label == label[a])
                if p != a
            )
    assert manifest["triplets"] == sum(len(pack["anchor"]) for pack in written)
    assert manifest["rows"] == sum(len(pack["row"]) for pack in written)


@pytest.mark.parametrize("fill", [2, 4])
def test_classes_in_packs_are_filled_and_no_further(fresh_run, fill):
    assert mine.main(["--run_dir", str(fresh_run), "--pack_rows", "16", *(["--fill", "2"] if fill == 2 else [])]) == 0
    label, _ = truth(fresh_run)
    classes = [len(np.unique(label[pack["row"]])) for pack in read_packs(fresh_run)]
    assert max(classes) <= 16 // fill and np.median(classes) > 8 // fill


def test_packs_are_filled_and_full(mined):
    label, _ = truth(mined)
    sizes = []
    for pack in read_packs(mined):
        rows = pack["row"]
        _, count = np.unique(label[rows], return_counts=True)
        assert count.min() >= 4
        sizes.append(len(rows))
        of_corpus = pack["scope"] == records.SCOPES.index("corpus")
        assert of_corpus.any()
    assert min(sizes[:-1]) > 100


def test_mining_again_says_so_and_changes_nothing(mined, capsys):
    def times():
        return {path: path.stat().st_mtime_ns for path in mined.rglob("[!.]*") if path.is_file()}

    before = times()
    assert mine.main(["--run_dir", str(mined)]) == 0
    assert "mined already" in capsys.readouterr().out
    assert before == times()
    with pytest.raises(InputError, match="mined already with margin 0.2, asked for 0.3"):
        mine.main(["--run_dir", str(mined), "--margin", "0.3"])


def test_same_triplets_for_other_threads_and_items(mined, fresh_run, monkeypatch):
    monkeypatch.setattr(mine, "ITEM_BLOCKS", 2)
    monkeypatch.setattr(mine, "CACHE_BYTES", 1)
    assert mine.main(["--run_dir", str(fresh_run), "--threads", "3"]) == 0
    assert digest_of(mined) == digest_of(fresh_run)


def test_nearest_split_over_column_lists_is_the_same(fresh_run, tmp_path, monkeypatch, digits):
    other = shutil.copytree(digits, tmp_path / "other")
    arguments = ["--pick", "nearest", "--negatives", "semi-hard,hard"]
    assert mine.main(["--run_dir", str(fresh_run), *arguments]) == 0
    monkeypatch.setattr(selection, "COLUMN_BLOCK", 100)
    monkeypatch.setattr(mine, "ITEM_COLUMNS", 3)
    assert mine.main(["--run_dir", str(other), *arguments]) == 0
    assert digest_of(other) == digest_of(fresh_run)


def test_the_command_speaks_plainly(fresh_run):
    done = command("pipeline.mine", "--run_dir", fresh_run)
    assert done.returncode == 0, done.stderr
    assert "over the whole corpus 1,258 semi-hard" in done.stdout
    assert "next: python -m trainer.train" in done.stdout
    progress = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} INFO (embed|columns|scan|write): \d+ of \d+"
    assert not [line for line in done.stderr.splitlines() if not re.fullmatch(progress, line)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--margin", "0"], "margin must be above 0"),
        (["--negatives", "easy"], "kinds out of semi-hard, hard"),
        (["--negatives", "hard:x"], "hard:x"),
        (["--pack_rows", "5"], "pack_rows must be 3"),
        (["--fill", "1"], "fill must be at least 2"),
        (["--fill", "65"], "hold two classes of 65 .fill.*found 128"),
        (["--pack_rows", "3", "--fill", "2"], "--fill does nothing for lone triplets"),
        (["--pack_rows", "3", "--pack_pick", "nearest"], "--pack_pick does nothing"),
        (["--anchors", "0"], "anchors must be at least 1"),
        (["--class_pool", "1"], "a negative needs two"),
        (["--posetives", "2"], "unknown option --posetives"),
        (["--posetives=2", "--runner=DirectRunner"], "unknown option --posetives"),
        (["stray"], "unknown option stray"),
    ],
)
def test_wrong_options_are_refused(fresh_run, arguments, message):
    with pytest.raises(InputError, match=message):
        mine.main(["--run_dir", str(fresh_run), *arguments])


def test_a_worker_error_reaches_the_user_in_one_line(fresh_run):
    corpus = fresh_run / "corpus" / "train-00000-of-00001.tfrecord"
    data = bytearray(corpus.read_bytes())
    data[5000] ^= 1
    corpus.write_bytes(data)
    done = command("pipeline.mine", "--run_dir", fresh_run)
    assert done.returncode == 4
    assert " ERROR " in done.stderr and "train-00000-of-00001.tfrecord" in done.stderr
    assert "Traceback" not in done.stderr


def guarded_corpus(tmp_path):
    """Vectors with copies inside and across classes, and groups across classes."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(12), 20)
    vectors = rng.standard_normal((12, 8))[label] * 0.3 + rng.standard_normal((240, 8))
    vectors[200:230] = vectors[rng.integers(0, 200, 30)]
    group = rng.integers(0, 40, 240)
    np.savez(tmp_path / "a.npz", vectors=vectors, labels=[f"{c:02d}" for c in label], groups=[f"g{g}" for g in group])
    return f"arrays:{tmp_path / 'a.npz'}"


@pytest.mark.parametrize("pick", ["random", "nearest"])
def test_guards_hold_through_the_whole_command(tmp_path, pick):
    """Each triplet against the oracle with copies, groups and both distance guards, columns and shards cut small."""
    run = tmp_path / "run"
    source = guarded_corpus(tmp_path)
    shares = ["--validation_share", "0", "--eval_share", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "SHARD_ROWS", 17)
        patch.setattr(selection, "COLUMN_BLOCK", 50)
        patch.setattr(mine, "ITEM_COLUMNS", 2)
        assert ingest.main(["--run_dir", str(run), "--source", source, *shares]) == 0
        assert train.main(["--run_dir", str(run), "--online", "--steps", "5"]) == 0
        guards = ["--min_negative_distance", "0.05", "--min_negative_ratio", "0.9"]
        kinds = ["--negatives", "semi-hard,hard", "--margin", "0.4", "--positives", "3", "--pick", pick]
        assert mine.main(["--run_dir", str(run), *guards, *kinds]) == 0
    corpus = records.open_corpus(run)
    split = corpus.split("train")
    assert split.copies and split.grouped and len(split.shards) == 15
    label, d = truth(run)
    rows = np.arange(split.rows)
    content, group = split.codes("content", rows), split.codes("group", rows)
    rule = selection.Rule(
        shares=(("semi-hard", 1.0), ("hard", 1.0)), margin=0.4, pick=pick,
        min_negative_distance=0.05, min_negative_ratio=0.9,
    )  # fmt: skip
    for pack in read_packs(run):
        for a, p, n, kind, scope in zip(
            *(pack["row"][pack[side]] for side in ("anchor", "positive", "negative")),
            pack["kind"], pack["scope"], strict=True,
        ):  # fmt: skip
            if scope == 0:
                oracle.check(rule, d, label, (a, p, n, kind), content, group)
            else:
                assert p in oracle.positives(a, label, content)
                assert n in oracle.negatives(KINDS[kind], rule, d, a, p, label, content, group)
        assert {g.decode() for g in pack["group"]} <= {f"g{n}" for n in range(40)}
    manifest = records.open_triplets(run, 0, corpus)
    assert manifest["guarded"]["corpus"] > 0


def test_found_merges_in_a_pipeline_in_any_order():
    rng = np.random.default_rng(0)
    item = mine.Item(number=3, first_column=0, last_column=1)
    parts = [
        selection.Found(
            similarity=rng.integers(0, 4, (5, 2)).astype(np.float32),
            row=rng.integers(0, 50, (5, 2)),
            guarded=rng.random((5, 1)) < 0.3,
        )
        for _ in range(20)
    ]
    expected = functools.reduce(selection.merge, parts)

    def same(merged):
        [(number, (_, found))] = merged
        assert number == 3
        for name in ("similarity", "row", "guarded"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))

    with TestPipeline(options=job.beam_options([])) as pipeline:
        elements = [(3, (item, parts[i])) for i in rng.permutation(20)]
        merged = pipeline | beam.Create(elements) | beam.Reshuffle() | beam.CombinePerKey(mine.MergeFound())
        assert_that(merged, same)


def test_nearest_semi_hard_is_tensorflow_addons_choice_inside_the_margin(mined):
    """Addons: the smallest d_an beyond d_ap. Wherever that lies inside the margin, it is our choice too."""
    label, d = truth(mined)
    split = records.open_corpus(mined).split("train")
    rows = np.arange(split.rows)
    rule = selection.Rule(pick="nearest", positives=2, margin=0.05)
    own = split.class_ranges(rows)
    corpus = records.open_corpus(mined)
    embedding = Embedder(records.checkpoint_path(mined, 0), corpus)(split.read(rows))
    block = selection.Block(row=rows, embedding=embedding)
    positive = selection.draw_positives(rule, rows, own)
    pairs = selection.make_pairs(rule, block, own, positive, embedding[positive])
    triplets, _ = selection.choose(rule, pairs, selection.scan_nearest(rule, pairs, [block], 2))
    ours = {(a, p): n for a, p, n in zip(triplets.anchor, triplets.positive, triplets.negative, strict=True)}
    compared = 0
    for a, p in zip(np.repeat(rows, 2), positive.ravel(), strict=True):
        beyond = np.where((label != label[a]) & (d[a] > d[a, p]), d[a], np.inf)
        addons = int(np.argmin(beyond))
        if beyond[addons] < d[a, p] + rule.margin:
            assert ours[a, p] == addons
            compared += 1
        else:
            assert (a, p) not in ours
    assert compared > 1000


def digest_of(run):
    return json.loads(records.manifest_path(run, 0).read_text())["triplet_digest"]


def test_what_an_interrupted_run_left_is_continued_or_cleared(mined, fresh_run):
    """Embeddings are taken over if they are whole and made again if not; stray files go."""
    rounds_dir = fresh_run / "rounds" / "0000"
    shutil.copytree(mined / "rounds/0000/embeddings", rounds_dir / "embeddings")
    [stored] = (rounds_dir / "embeddings").rglob("*.npy")
    damaged = np.load(stored)
    damaged[:100] = 0
    np.save(stored, damaged)
    stale = rounds_dir / "triplets" / "triplets-00007-of-00009.tfrecord"
    stale.parent.mkdir()
    stale.write_bytes(b"half")
    (rounds_dir / "embeddings" / ".left.1.ab.tmp.npy").write_bytes(b"half")
    (rounds_dir / "work" / "another").mkdir(parents=True)
    assert mine.main(["--run_dir", str(fresh_run)]) == 0
    assert digest_of(fresh_run) == digest_of(mined)
    assert not stale.exists() and not (rounds_dir / "work").exists()
    assert not list(fresh_run.rglob(".*tmp*"))
    assert records.main(["verify", str(fresh_run)]) == 0
    (rounds_dir / "found.npz").write_bytes(b"PK half")
    assert mine._read_found(rounds_dir / "found.npz") is None


def test_ctrl_c_in_a_worker_is_ctrl_c(fresh_run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mine.WritePacks, "process", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mine.main(["--run_dir", str(fresh_run)])
    monkeypatch.undo()
    assert not records.manifest_path(fresh_run, 0).exists()
    assert mine.main(["--run_dir", str(fresh_run)]) == 0


def test_a_network_that_maps_everything_to_one_point_is_named_as_the_reason(tmp_path):
    rng = np.random.default_rng(0)
    vectors = np.ones((60, 8), np.float32) + 1e-5 * rng.standard_normal((60, 8)).astype(np.float32)
    np.savez(tmp_path / "same.npz", vectors=vectors, labels=np.arange(60) % 3)
    run = ["--run_dir", str(tmp_path / "run")]
    assert ingest.main([*run, "--source", f"arrays:{tmp_path / 'same.npz'}"]) == 0
    assert train.main([*run, "--init", "--model", "benchmarks.peers:identity"]) == 0
    with pytest.raises(InputError, match="All embeddings lie together .their mean has norm 1.000"):
        mine.main(run)


def test_no_shard_is_written_on_after_its_bundle_failed(digits):
    """Its threads would write beside those of the next try, which may have other options."""
    manifest_job = mine.Job(run_dir=digits, round=0, rule=selection.Rule(), threads=2)
    step, running, release = mine.WritePacks(manifest_job, 5), [], threading.Event()

    def write(element):
        number, _ = element
        if number == 0:
            raise OSError("no space left")
        running.append(number)
        release.wait()

    step.work = write
    step.start_bundle()
    threading.Timer(0.2, release.set).start()
    with pytest.raises(OSError, match="no space"):
        for number in range(5):
            list(step.process((number, [selection.Triplets.none()])))
    assert release.is_set(), "it waited for what was under way"
    done = list(running)
    with pytest.raises(RuntimeError, match="after shutdown"):
        step.threads.submit(write, (9, []))
    assert running == done and 9 not in done


def test_a_round_without_any_triplet_is_refused(fresh_run):
    """A band narrower than the grid holds nothing."""
    with pytest.raises(InputError, match="round 0 has no triplet, out of 1258 pairs"):
        mine.main(["--run_dir", str(fresh_run), "--margin", "1e-9"])
    assert not records.manifest_path(fresh_run, 0).exists()


def test_classes_of_one_row_are_refused_by_init(tmp_path):
    np.savez(tmp_path / "a.npz", vectors=np.eye(4), labels=[0, 1, 2, 3])
    run, shares = tmp_path / "run", ["--validation_share", "0", "--eval_share", "0"]
    assert ingest.main(["--run_dir", str(run), "--source", f"arrays:{tmp_path / 'a.npz'}", *shares]) == 0
    with pytest.raises(InputError, match="0 of the classes to train on have two rows"):
        train.main(["--run_dir", str(run), "--init"])


def test_a_payload_that_ends_in_nul_bytes_stays_as_it_is(tmp_path):
    """As camera files padded to a block do."""
    write_images(tmp_path / "source", classes=3, each=8)
    files = sorted((tmp_path / "source").rglob("*.png"))
    for path in files[::2]:
        path.write_bytes(path.read_bytes() + bytes(7))
    run = tmp_path / "run"
    assert ingest.main(["--run_dir", str(run), "--source", f"images:{tmp_path / 'source'}"]) == 0
    assert train.main(["--run_dir", str(run), "--init"]) == 0
    assert mine.main(["--run_dir", str(run), "--negatives", "semi-hard,hard"]) == 0
    packed: dict[bytes, bytes] = {}
    for pack in records.read_packs(run):
        packed |= zip(pack["id"], pack["image"], strict=True)
    assert any(image.endswith(bytes(7)) for image in packed.values())
    assert all((tmp_path / "source" / id.decode()).read_bytes() == image for id, image in packed.items())


def test_a_round_of_a_version_without_fill_is_known_again(mined, tmp_path, capsys):
    run = shutil.copytree(mined, tmp_path / "run")
    path = records.manifest_path(run, 0)
    manifest = json.loads(path.read_text())
    del manifest["options"]["fill"], manifest["options"]["pack_pick"]
    records.write_json(path, manifest)
    assert mine.main(["--run_dir", str(run)]) == 0
    assert "round 0 is mined already; nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match="mined already with fill 4, asked for 2"):
        mine.main(["--run_dir", str(run), "--fill", "2"])


def test_in_one_process_the_checkpoint_is_loaded_once(digits, tmp_path, monkeypatch):
    run, loaded, load = shutil.copytree(digits, tmp_path / "run"), [], records.load_checkpoint
    for module in (records, embed):
        monkeypatch.setattr(module, "load_checkpoint", lambda path: loaded.append(path) or load(path))
    assert mine.main(["--run_dir", str(run)]) == 0
    assert loaded == [records.checkpoint_path(run, 0)] and not mine._loaded
