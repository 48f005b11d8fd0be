"""Mining the same embeddings with us, sentence-transformers, pytorch-metric-learning and FAISS, in one run.

    make bench-peers

Every method is a process of its own, timed from its start to its end, with its imports; `work` leaves those out. All
get finished embeddings, so no network is timed: ours a corpus of vectors and a network that only normalises,
sentence-transformers a model whose encode looks them up. Ours also writes what it found as training records; the
others keep it in memory. Each result is then judged by our definition of a valid triplet.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

MARGIN = 0.2
MEMORY = 8 << 30  # bytes that a miner inside the batch may take: what "the largest batch that fits" means here
FAISS_K = 100
ALL_TRIPLETS = "all semi-hard triplets"  # its miners, as the table names them
BATCH_HARD = "hardest positive, semi-hard negative"


def identity(shape: tuple[int, ...]) -> Any:
    """The network of our side: embeddings are given."""
    import keras

    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.UnitNormalization()(inputs))


# ---- The peers: (vectors float32 [n, dim], labels [n]) to triplets int [t, 3] and what else there is to say. ----


def every_pair(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs of a label, labels ascending: sentence-transformers knows positives only from its pairs."""
    first = np.searchsorted(label, label, "left")
    size = np.searchsorted(label, label, "right") - first
    anchor = np.repeat(np.arange(len(label)), size)
    place = np.arange(len(anchor)) - np.repeat(np.cumsum(size) - size, size)
    positive = first[anchor] + place
    return anchor[anchor != positive], positive[anchor != positive]


def one_pair(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the next of its label: where listing every pair is out of the question."""
    anchor = np.arange(len(label))
    first, last = np.searchsorted(label, label, "left"), np.searchsorted(label, label, "right")
    return anchor, np.where(anchor + 1 < last, anchor + 1, first)


def sentence_transformers(vectors: np.ndarray, label: np.ndarray, use_faiss: bool, pairs: Any) -> np.ndarray:
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    class Given(SentenceTransformer):
        """A text is the number of a row."""

        def encode_document(self, texts: list[str], **_: Any) -> np.ndarray:
            return vectors[np.array(texts, np.int64)]

        encode_query = encode_document

        def get_embedding_dimension(self) -> int:
            return vectors.shape[1]

    anchor, positive = pairs(label)
    texts = Dataset.from_dict({"anchor": anchor.astype(str), "positive": positive.astype(str)})
    # A corpus that is its own query set: the nearest row of an anchor is the anchor, hence range_min.
    mined = mine_hard_negatives(
        texts, Given(modules=[torch.nn.Identity()], device="cpu"), range_min=1, num_negatives=1,
        use_faiss=use_faiss, output_format="triplet", verbose=False,
    )  # fmt: skip
    return np.stack([np.array(mined[side], np.int64) for side in ("anchor", "positive", "negative")], axis=1)


def metric_learning(vectors: np.ndarray, label: np.ndarray, miner: str, rows: int) -> np.ndarray:
    """Among `rows` rows drawn class by class, as a batch would be."""
    import torch
    from pytorch_metric_learning import miners
    from pytorch_metric_learning.distances import LpDistance

    rng = np.random.default_rng(0)
    classes = rng.permutation(np.unique(label))
    each = max(20, -(-rows // len(classes)))
    batch = np.concatenate([np.flatnonzero(label == c)[:each] for c in classes[: -(-rows // each)]])[:rows]
    assert len(batch) == rows
    squared = LpDistance(normalize_embeddings=True, p=2, power=2)  # distances as ours
    if miner == ALL_TRIPLETS:
        made: Any = miners.TripletMarginMiner(MARGIN, "semihard", distance=squared)
    else:
        made = miners.BatchEasyHardMiner("hard", "semihard", distance=squared)
    found = made(torch.from_numpy(vectors[batch]), torch.from_numpy(label[batch]))
    if len(found) == 4:  # pairs (a1, p) and (a2, n): an anchor's positives times its negatives
        a1, p, a2, n = (part.numpy() for part in found)
        negative = dict(zip(a2.tolist(), n.tolist(), strict=True))
        keep = np.array([a in negative for a in a1.tolist()], bool)
        found = (a1[keep], p[keep], np.array([negative[a] for a in a1[keep].tolist()], np.int64))
    return batch[np.stack([np.asarray(part) for part in found], axis=1)]


def faiss_knn(vectors: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Each row's nearest row of another label among its FAISS_K nearest, with its next classmate as positive."""
    import faiss

    _, near = faiss.knn(vectors, vectors, FAISS_K)
    other = label[near] != label[:, None]
    there = np.flatnonzero(other.any(axis=1))
    anchor, positive = one_pair(label)
    return np.stack([anchor, positive, near[np.arange(len(near)), other.argmax(axis=1)]], axis=1)[there]


def our_arrays(vectors: np.ndarray, label: np.ndarray, positives: int) -> np.ndarray:
    """`mine_triplets`, by the options of `ours`: the nearest negative of each pair, hard and semi-hard."""
    from pipeline import mine_triplets

    kinds = {"semi-hard": 1, "hard": 1}
    found = mine_triplets(vectors, label, kind=kinds, pick="nearest", positives=positives, margin=MARGIN)
    return np.stack([found.anchor, found.positive, found.negative], axis=1)


METHODS: dict[str, Any] = {
    "sentence-transformers, FAISS": lambda v, y: sentence_transformers(v, y, True, every_pair),
    "sentence-transformers": lambda v, y: sentence_transformers(v, y, False, every_pair),
    "sentence-transformers, FAISS, one pair a row": lambda v, y: sentence_transformers(v, y, True, one_pair),
    f"faiss.knn, k = {FAISS_K}": faiss_knn,
}
BATCHES = {ALL_TRIPLETS: (1000, 2000, 4000), BATCH_HARD: (8000, 16000)}
CAN = {
    "sentence-transformers": "the nearest of other labels; every pair of a label must be listed, else classmates count "
    "as negatives; no band that depends on the pair",
    "pytorch": "every kind, among the rows of a batch",
    "faiss": "the nearest k rows of any label; no band",
    "ours": "hard and semi-hard over all rows, nearest or uniform, with guards; writes records with payload",
}


def as_process(arguments: argparse.Namespace) -> None:
    """One peer, in this process: mines, writes its triplets, prints what it took."""
    with np.load(arguments.data) as data:
        vectors, label = data["vectors"], data["labels"].astype(np.int64)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY * 2, MEMORY * 2))
    if arguments.method == "mine_triplets":
        our_arrays(vectors[:500], label[:500], arguments.positives)  # compiles its kernels, or loads them
    started = time.perf_counter()
    if arguments.method == "mine_triplets":
        triplets = our_arrays(vectors, label, arguments.positives)
    elif arguments.rows:
        triplets = metric_learning(vectors, label, arguments.method, arguments.rows)
    else:
        triplets = METHODS[arguments.method](vectors, label)
    np.save(arguments.out, triplets)
    print(json.dumps({"work": time.perf_counter() - started}))


# ---- Measuring. ----


def measured(command: list[str]) -> dict[str, Any] | None:
    """Seconds, CPU seconds and peak megabytes of a process, from start to end; None if it failed."""
    timed = [sys.executable, "-c", _TIMED, *command]
    done = subprocess.run(timed, capture_output=True, text=True)
    if done.returncode:
        print("  failed: " + done.stderr.strip().splitlines()[-1][:200], file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


# A child of its own, so that its children's high-water mark is that one process's.
_TIMED = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
seconds = time.perf_counter() - started
sys.stderr.write(done.stderr)
if done.returncode == 0:
    told = done.stdout.splitlines()[-1] if done.stdout.startswith("{") else "{}"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    print(json.dumps({**json.loads(told), "seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak}))
sys.exit(done.returncode)
"""


def judged(triplets: np.ndarray, vectors: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Shares of triplets that are semi-hard, hard, and either, of `negatives` of another label."""
    if not len(triplets):
        return {"triplets": 0, "semi_hard": 0.0, "hard": 0.0, "valid": 0.0, "same_label": 0.0}
    a, p, n = triplets.T
    d_ap, d_an = (2 - 2 * np.concatenate([np.einsum("nd,nd->n", vectors[a[i]], vectors[b[i]]) for i in
                  np.array_split(np.arange(len(a)), 1 + len(a) // 100_000)]) for b in (p, n))  # fmt: skip
    other = label[a] != label[n]
    hard, semi = other & (d_an <= d_ap), other & (d_an > d_ap) & (d_an < d_ap + MARGIN)
    return {
        "triplets": len(triplets), "semi_hard": semi.mean(), "hard": hard.mean(), "valid": (semi | hard).mean(),
        "same_label": (~other).mean(),
    }  # fmt: skip


def ours(data: Path, scratch: Path, positives: int, vectors: np.ndarray, label: np.ndarray, repeat: int) -> Any:
    """`pipeline.mine` of a corpus of vectors: embeds, scans, writes records. The nearest negative of each pair."""
    from benchmarks.runs import ingest_source
    from pipeline.files import manifests
    from pipeline.files.layout import Run
    from pipeline.mining.manifest import Stats, read_packs
    from trainer.first import write_first
    from trainer.options import InitOptions

    run_dir = scratch / f"run-{data.stem}-{positives}"
    ingest_source(run_dir, f"arrays:{data}", validation_share=0.0, eval_share=0.0)
    write_first(run_dir, InitOptions(model="benchmarks.peers:identity"))
    options = ["--negatives", "semi-hard,hard", "--pick", "nearest", "--positives", str(positives), "--pack_rows", "3"]
    call = [sys.executable, "-m", "pipeline.mine", "--run_dir", str(run_dir), *options, "--margin", str(MARGIN)]
    round, runs = Run(run_dir).round(0), []
    for _ in range(repeat):
        shutil.rmtree(round.triplets, ignore_errors=True)
        shutil.rmtree(round.path / "embeddings", ignore_errors=True)
        found = measured(call)
        assert found, "pipeline.mine failed"
        runs.append({**found, "work": manifests.read(round.stats, Stats).mining_seconds})
    # Rows of the corpus are ordered by (label, id), labels as text.
    order = np.lexsort((np.arange(len(label)), label.astype(str)))
    triplets = order[np.array([pack["row"] for pack in read_packs(run_dir)], np.int64)]
    shutil.rmtree(run_dir)
    return {**min(runs, key=lambda run: run["seconds"]), **judged(triplets, vectors, label)}


def compare(name: str, vectors: np.ndarray, label: np.ndarray, positives: int, methods: list[str], python: str,
            scratch: Path, repeat: int) -> dict[str, dict[str, Any]]:  # fmt: skip
    data = scratch / f"{name}.npz"
    np.savez(data, vectors=vectors, labels=label)
    results: dict[str, dict[str, Any]] = {}

    def peer(shown: str, method: str, rows: int = 0, python: str = python) -> bool:
        out = scratch / "triplets.npy"
        call = [python, "-m", "benchmarks.peers", "--method", method, "--data", str(data), "--out", str(out)]
        call += ["--rows", str(rows), "--positives", str(positives)]
        runs = [measured(call) for _ in range(1 if rows else repeat)]
        best = min((run for run in runs if run), key=lambda run: run["seconds"], default=None)
        if best is None or best["peak_mb"] > MEMORY >> 20:
            return False
        results[shown] = {**best, **judged(np.load(out), vectors, label)}
        line(shown, results[shown])
        return True

    shown = f"ours, {positives} positive{'s' * (positives > 1)} a row, nearest"
    results[shown] = ours(data, scratch, positives, vectors, label, repeat)
    print(f"{name}: {len(label):,} x {vectors.shape[1]}, {len(np.unique(label)):,} classes")
    line(shown, results[shown])
    peer("ours, mine_triplets of the same arrays, nothing written", "mine_triplets", python=sys.executable)
    for method in methods:
        peer(method, method)
    for miner, sizes in BATCHES.items():
        for rows in sizes:  # the last that fits stays
            if not peer(f"pytorch-metric-learning, {miner}, {rows:,} rows", miner, rows):
                break
            fits = [key for key in results if f"learning, {miner}" in key]
            for smaller in fits[:-1]:
                del results[smaller]
    return results


def line(name: str, found: dict[str, Any]) -> None:
    shares = "  ".join(f"{key} {found[key]:.1%}" for key in ("valid", "semi_hard", "same_label"))
    print(f"  {name:<62}{found['seconds']:7.1f} s {found['work']:7.1f} s {found['peak_mb']:7,.0f} MB"
          f"{found['triplets']:>11,}  {shares}", flush=True)  # fmt: skip


def report(tables: dict[str, Any], versions: dict[str, str]) -> int:
    """The rows with bounds. Returns 1 when one is short."""
    from benchmarks.table import Row, finish, show

    omniglot = tables["omniglot-size"]
    own, arrays = list(omniglot.values())[:2]
    theirs = omniglot["sentence-transformers, FAISS"]
    rows = [
        # Most of ours is half a million lone records, each a tf.train.Example; theirs writes none.
        Row(what="seconds, sentence-transformers with FAISS over ours, whole command", bound=5.0, at_least=True,
            value=theirs["seconds"] / own["seconds"], note=f"{theirs['seconds']:.1f} s, {own['seconds']:.1f} s"),
        Row(what="the same in CPU seconds, which other work on the machine moves less",
            value=theirs["cpu_seconds"] / own["cpu_seconds"],
            note=f"{theirs['cpu_seconds']:.1f} s, {own['cpu_seconds']:.1f} s"),
        Row(what="its mining alone over ours, which also writes", value=theirs["work"] / own["work"],
            note=f"{theirs['work']:.1f} s, {own['work']:.1f} s"),
        Row(what="its mining over mine_triplets: arrays in, triplets out, kernels warm", bound=15.0, at_least=True,
            value=theirs["work"] / arrays["work"], note=f"{theirs['work']:.1f} s, {arrays['work']:.2f} s"),
        Row(what="peak memory, theirs over ours", bound=2.0, at_least=True, value=theirs["peak_mb"] / own["peak_mb"],
            note=f"{theirs['peak_mb']:,.0f} MB, {own['peak_mb']:,.0f} MB"),
    ]  # fmt: skip
    for row in rows:
        show(row)
    return finish("peers", rows, versions, can=CAN, tables=tables)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fashion_mnist", help="directory of the four IDX files")
    parser.add_argument("--python", help="of the environment that holds the peers")
    parser.add_argument("--repeat", type=int, default=2, help="the fastest of so many runs counts (2)")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--positives", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.method:
        as_process(arguments)
        return 0
    from benchmarks.selection import fashion_mnist
    from benchmarks.vectors import clustered

    names = ("faiss-cpu", "pytorch-metric-learning", "sentence-transformers", "torch", "transformers")
    ask = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {names}}}))"
    versions = json.loads(subprocess.run([arguments.python, "-c", ask], capture_output=True, check=True).stdout)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        label, vectors = clustered(32_000, 64, 1600, 1.0)
        omniglot = compare("omniglot-size", vectors, label, 19, list(METHODS), arguments.python, scratch,
                           arguments.repeat)  # fmt: skip
        label, vectors = fashion_mnist(arguments.fashion_mnist, 64)
        # Its 490 million pairs of a label cannot be listed: one pair a row.
        some = [method for method in METHODS if "one pair" in method or method.startswith("faiss")]
        fashion = compare("fashion-mnist", vectors, label, 1, some, arguments.python, scratch, arguments.repeat)
    return report({"omniglot-size": omniglot, "fashion-mnist": fashion}, versions)


if __name__ == "__main__":
    sys.exit(main())
