"""How fast selection is, against the bare matrix product, FAISS, itself at another size, and the bare parts of mining.

    make bench-selection

Every ratio is the median of 5 taken in turn within one run; what an image more costs is told by the fastest of 3.
Embeddings are Fashion-MNIST's 70,000 images through PCA (where a row needs more rows, each image several times with
noise), or unit vectors round random class centres.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.table import Row, finish, paired, seconds, show
from benchmarks.vectors import BOTH, THREADS, Corpus, clustered, normalise
from pipeline.files.layout import Run
from pipeline.triplets.kernels import one_blas_thread
from pipeline.triplets.pairs import draw_positives, make_pairs
from pipeline.triplets.rows import Block, to_grid
from pipeline.triplets.rule import Rule
from pipeline.triplets.scan import scan_nearest

PICKS = ("random", "nearest")
ANCHORS = 20_000  # of the rounds that are mined whole


# ---- Embeddings. ----


def read_images(directory: str) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [70000, 28, 28], labels) of Fashion-MNIST, as they come."""
    from pipeline.corpus.sources.fashion_mnist import read_idx

    images, labels = (
        np.concatenate([read_idx(Path(directory, f"{name}-{what}-ubyte")) for name in ("train", "t10k")])
        for what in ("images-idx3", "labels-idx1")
    )
    return images, labels


def fashion_mnist(directory: str, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels in order, embeddings) of all 70,000 images through PCA."""
    images, label = read_images(directory)
    order = np.argsort(label, kind="stable")
    pixels = images[order].reshape(-1, 784).astype(np.float32) / 255
    pixels -= pixels.mean(axis=0)
    _, _, components = np.linalg.svd(pixels[::7], full_matrices=False)
    return label[order].astype(np.int64), normalise(pixels @ components[:dim].T)


def repeated(label: np.ndarray, embedding: np.ndarray, times: int) -> tuple[np.ndarray, np.ndarray]:
    """Every row `times` times, each with noise of its own."""
    rng = np.random.default_rng(0)
    copies = np.repeat(embedding, times, axis=0)
    copies += rng.standard_normal(copies.shape, dtype=np.float32) * np.float32(0.3 / embedding.shape[1] ** 0.5)
    return np.repeat(label, times), normalise(copies)


# ---- What is timed. ----


def sgemm_large(anchors: np.ndarray, embedding: np.ndarray) -> None:
    """The same product in a few large calls of a multi-threaded BLAS, into one buffer."""
    out = np.empty((1024, len(embedding)), np.float32)
    for start in range(0, len(anchors), 1024):
        part = anchors[start : start + 1024]
        np.dot(part, embedding.T, out=out[: len(part)])


def sgemm_tiles(anchors: np.ndarray, embedding: np.ndarray, shape: tuple[int, int]) -> None:
    """The same product in tiles, a single-threaded BLAS call a thread."""

    def work(start: int) -> None:
        part = anchors[start : start + shape[0]]
        out = np.empty((len(part), shape[1]), np.float32)
        for column in range(0, len(embedding), shape[1]):
            right = embedding[column : column + shape[1]]
            if len(right) == shape[1]:
                np.dot(part, right.T, out=out)
            else:
                part @ right.T

    with one_blas_thread(), ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(0, len(anchors), shape[0])))


def over_sgemm(what: str, corpus: Corpus, bound: float) -> Row:
    """The scan over the bare product, at whichever of its settings is the fastest one here."""
    anchors, embedding = np.ascontiguousarray(corpus.pairs.anchors.embedding), corpus.embedding
    settings = {
        "large calls": lambda left: sgemm_large(left, embedding),
        "tiles of 512 x 512": lambda left: sgemm_tiles(left, embedding, (512, 512)),
        "tiles of 2048 x 256": lambda left: sgemm_tiles(left, embedding, (2048, 256)),
    }
    taken = {}
    for name, product in settings.items():
        product(anchors[:4096])
        started = time.perf_counter()
        product(anchors)
        taken[name] = time.perf_counter() - started
    best = min(taken, key=lambda name: taken[name])
    ratio, ours, bare = paired(corpus.scan, lambda: settings[best](anchors))
    return Row(what=what, value=ratio, bound=bound, note=f"{ours:.2f} s, sgemm in {best} {bare:.2f} s")


def over_faiss(corpus: Corpus) -> Row:
    import faiss

    embedding = np.ascontiguousarray(corpus.embedding)
    ratio, ours, theirs = paired(corpus.scan, lambda: faiss.knn(embedding, embedding, 100))
    note = f"{ours:.2f} s, FAISS {faiss.__version__} {theirs:.2f} s"
    return Row(what="the same over faiss.knn(k=100), the nearest 100 only", value=ratio, bound=0.7, note=note)


def peak_of_this_process() -> float:
    """MB. Linux' high-water mark of this program alone: getrusage's counts the parent before exec too."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def peak_memory(label: np.ndarray, embedding: np.ndarray) -> float:
    """MB that a process of its own needs at its peak beyond the embeddings, while it scans 8,192 anchors."""
    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch, "label.npy"), label)
        np.save(Path(scratch, "embedding.npy"), embedding)
        call = [sys.executable, "-m", "benchmarks.selection", "--peak", scratch]
        return float(subprocess.run(call, capture_output=True, text=True, check=True).stdout)


def report_peak(directory: str) -> None:
    label, embedding = (np.load(Path(directory, f"{name}.npy")) for name in ("label", "embedding"))
    rule = Rule(shares=BOTH, pick="nearest", positives=4)
    rows = np.arange(len(label))
    columns = [Block(row=rows[c : c + 4096], embedding=embedding[c : c + 4096]) for c in range(0, len(rows), 4096)]
    for start in range(0, 8192, 2048):  # as a work item of the job does it: 2,048 anchors against all columns
        anchors = Block(row=rows[start : start + 2048], embedding=embedding[start : start + 2048])
        own = np.stack([np.searchsorted(label, label[anchors.row], side) for side in ("left", "right")], axis=1)
        positive = draw_positives(rule, anchors.row, own)
        pairs = make_pairs(rule, anchors, own, positive, embedding[positive])
        scan_nearest(rule, pairs, columns, THREADS)
    print(peak_of_this_process() - embedding.nbytes / 2**20)


# ---- What an image more costs the whole command, on Fashion-MNIST. ----


Turn = tuple[dict[str, float], dict[str, float]]  # seconds of mining by pick; of bare parts by name


def mirrored_corpora(directory: str, scratch: Path) -> tuple[Path, Path]:
    """Run directories of all 70,000 images, and of these and the same mirrored left-right, with one checkpoint."""
    from benchmarks.runs import ingest_arrays
    from trainer.options import WarmupOptions
    from trainer.warming import warm_up

    images, labels = read_images(directory)
    ids, once, twice = np.arange(len(images)).astype(str), scratch / "once", scratch / "twice"
    ingest_arrays(once, images=images, labels=labels, ids=ids)
    ingest_arrays(
        twice, images=np.concatenate([images, images[:, :, ::-1]]), labels=np.tile(labels, 2),
        ids=np.concatenate([ids, np.char.add(ids, "-mirrored")]),
    )  # fmt: skip
    warm_up(once, WarmupOptions(steps=50))
    shutil.copytree(Run(once).round(0).checkpoint.parent, Run(twice).round(0).checkpoint.parent)
    return once, twice


def mining_seconds(run_dir: Path, pick: str) -> float:
    """Of `pipeline.mine` as a process, with its start, which is in both of a difference."""
    for part in ("triplets", "embeddings"):
        shutil.rmtree(Run(run_dir).round(0).path / part, ignore_errors=True)
    options = ["--anchors", str(ANCHORS), "--positives", "2", "--pick", pick]
    call = [sys.executable, "-m", "pipeline.mine", "--run_dir", str(run_dir), *options]
    return seconds(lambda: subprocess.run(call, check=True, capture_output=True), 1)[0]


def bare_seconds(run_dir: Path) -> dict[str, float]:
    """Of the bare parts, in a process of their own."""
    call = [sys.executable, "-m", "benchmarks.selection", "--bare", str(run_dir)]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def report_bare(run_dir: Path) -> None:
    """Forward passes of the network as Keras runs it, from PNGs in memory, and a scan for each pick."""
    import tensorflow as tf

    from pipeline.corpus import corpus as on_disk
    from pipeline.embedding.network import load_network

    split, model = on_disk.Corpus.open(run_dir).split("train"), load_network(Run(run_dir).round(0).checkpoint).model
    pngs = [example["image"][0] for example in split.examples(np.arange(split.rows))]
    spec = [tf.TensorSpec([256, 28, 28, 1])]
    forward = tf.function(lambda images: model(images, training=False), input_signature=spec)
    forward(tf.zeros(spec[0].shape))
    images = tf.data.Dataset.from_tensor_slices(pngs)
    images = images.map(lambda png: tf.cast(tf.io.decode_png(png, channels=1), tf.float32), num_parallel_calls=THREADS)
    batches = images.batch(256, drop_remainder=True).prefetch(2)
    started = time.perf_counter()
    found = [forward(batch) for batch in batches]
    taken = {"forward": time.perf_counter() - started}
    embedding = to_grid(np.concatenate([batch.numpy() for batch in found]))
    label = split.class_of(np.arange(len(embedding)))
    anchors = np.linspace(0, len(label) - 1, ANCHORS).astype(np.int64)
    for pick in PICKS:
        corpus = Corpus(Rule(pick=pick, positives=2), label, embedding, anchors)
        corpus.scan()
        taken[pick] = seconds(corpus.scan, 1)[0]
    print(json.dumps(taken))


def measure_turns(directory: str, repeat: int = 3) -> list[list[Turn]]:
    """[repetition][size], all sizes and picks in turn."""
    with tempfile.TemporaryDirectory() as scratch:
        sizes = mirrored_corpora(directory, Path(scratch))
        return [
            [({pick: mining_seconds(run_dir, pick) for pick in PICKS}, bare_seconds(run_dir)) for run_dir in sizes]
            for _ in range(repeat)
        ]


def marginal_cost(turns: list[list[Turn]], pick: str) -> Row:
    """`pipeline.mine` of 140,000 images minus that of 70,000, over the same difference of the bare parts.

    Each at the fastest of its repetitions. What a process needs to start is in no difference, and the packs are nearly
    the same.
    """
    mined = [min(turn[size][0][pick] for turn in turns) for size in (0, 1)]
    forward, scan = ([min(turn[size][1][part] for turn in turns) for size in (0, 1)] for part in ("forward", pick))
    more, bare = mined[1] - mined[0], forward[1] - forward[0] + scan[1] - scan[0]
    return Row(
        what=f"mining 70,000 images more, 20,000 anchors, P = 2, {pick}, over bare parts", value=more / bare, bound=1.4,
        note=f"{mined[1]:.1f} - {mined[0]:.1f} = {more:.1f} s; forward {forward[1]:.1f} - {forward[0]:.1f}, scan "
        f"{scan[1]:.2f} - {scan[0]:.2f} = {bare:.1f} s",
    )  # fmt: skip


def trained_omniglot(source: str) -> tuple[np.ndarray, np.ndarray]:
    """(labels, embeddings) of Omniglot's training classes under a network warmed up for 300 steps."""
    from benchmarks.omniglot import merged
    from benchmarks.runs import ingest_source
    from pipeline.corpus.corpus import Corpus
    from pipeline.embedding.embedder import Embedder
    from pipeline.embedding.network import load_network
    from trainer.options import WarmupOptions
    from trainer.warming import warm_up

    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch, "run")
        ingest_source(run_dir, f"images:{merged([source], Path(scratch, 'characters'))}")
        checkpoint, corpus = warm_up(run_dir, WarmupOptions(steps=300)).path, Corpus.open(run_dir)
        split = corpus.split("train")
        embedder = Embedder(load_network(Path(checkpoint)), corpus.feature)
        return split.class_of(np.arange(split.rows)), embedder.split(split)


def million() -> None:
    """1,000,000 x 64, 20,000 anchors: run once, in a process whose peak it reports."""
    label, embedding = clustered(1_000_000, 64, 50_000, 1.0)
    for pick in ("nearest", "random"):
        rule = Rule(shares=BOTH, pick=pick, positives=4)
        corpus = Corpus(rule, label, embedding, np.arange(0, 1_000_000, 50))
        started = time.perf_counter()
        counts = corpus.select()
        taken = time.perf_counter() - started
        peak = peak_of_this_process()
        print(f"1,000,000 x 64, 20,000 anchors, {pick}: {taken:.1f} s, peak {peak:,.0f} MB, {counts}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion_mnist", help="directory of the four IDX files")
    parser.add_argument("--omniglot", help="folder of images, or a zip of one")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--million", action="store_true", help="only 1,000,000 rows, once")
    arguments = parser.parse_args()
    if arguments.peak:
        report_peak(arguments.peak)
        return 0
    if arguments.bare:
        report_bare(arguments.bare)
        return 0
    if arguments.million:
        million()
        return 0
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        show(row)

    nearest = Rule(shares=BOTH, pick="nearest", positives=4)
    label, embedding = fashion_mnist(arguments.fashion_mnist, 64)
    fashion = Corpus(nearest, label, embedding)
    add(over_sgemm("scan 70,000 x 64, P = 4, nearest semi-hard + hardest, over sgemm", fashion, 1.35))
    add(over_faiss(fashion))
    for dim in (64, 128, 256):
        many = Corpus(nearest, *clustered(32_000, dim, 1600, 1.0))
        add(over_sgemm(f"scan 32,000 x {dim}, 1,600 classes of 20, over sgemm", many, 1.35))

    label4, embedding4 = repeated(label, embedding, 4)
    anchors = np.arange(0, len(label4), 4)
    random = Rule(pick="random", positives=4, margin=0.5)
    full = Corpus(Rule(pick="nearest", positives=4, margin=0.5), label4, embedding4, anchors)
    early = Corpus(random, label4, embedding4, anchors)
    counts = early.select()
    early_ratio, ours, theirs = paired(early.scan, full.scan)
    share = 1 - counts["no_semi_hard_negative"] / counts["pairs"]
    note = f"{ours:.2f} s, full {theirs:.1f} s; {share:.1%} of the pairs served"
    add(Row(what="random over full scan, 280,000 rows, 70,000 anchors", value=early_ratio, bound=0.05, note=note))

    if arguments.omniglot:
        label_o, embedding_o = trained_omniglot(arguments.omniglot)
        pair = [Corpus(Rule(pick=pick, positives=4), label_o, embedding_o) for pick in ("random", "nearest")]
        ratio, ours, theirs = paired(pair[0].scan, pair[1].scan)
        counts = pair[0].select()
        note = f"{ours:.3f} s, full {theirs:.3f} s; {counts['no_semi_hard_negative'] / counts['pairs']:.0%} bands empty"
        add(Row(what="the same, trained Omniglot embeddings, empty bands included", value=ratio, note=note))

    label2, embedding2 = repeated(label, embedding, 2)
    for pick, bound in (("nearest", 4.4), ("random", 2.3)):
        rule = Rule(pick=pick, positives=4, margin=0.5)
        ratio, two, one = paired(Corpus(rule, label2, embedding2).scan, Corpus(rule, label, embedding).scan)
        name = "full scan" if pick == "nearest" else "random, early leave"
        add(Row(what=f"time at 2N over N, {name}", value=ratio, bound=bound, note=f"{two:.2f} s, {one:.2f} s"))

    sizes = ((label4, embedding4), (label, embedding))
    large, small = (statistics.median(peak_memory(*data) for _ in range(5)) for data in sizes)
    note = f"{large:.0f} MB, {small:.0f} MB"
    what = "peak memory beyond the embeddings, 280,000 rows over 70,000"
    add(Row(what=what, value=large / small, bound=1.1, note=note))

    turns = measure_turns(arguments.fashion_mnist)
    for pick in PICKS:
        add(marginal_cost(turns, pick))
    return finish("selection", rows)


if __name__ == "__main__":
    sys.exit(main())
