"""How good checkpoints are on held-out rows: retrieval, verification, a linear probe, clusters.

python -m trainer.evaluate --run_dir D [--round K ...]
"""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline import command, records, storage
from pipeline.embed import CHUNK_ROWS, Embedder, decode_records
from pipeline.records import Corpus, InputError, Split, import_tensorflow
from pipeline.selection import to_grid
from trainer.verification import deal_rows, verification

RECALL_AT = (1, 5, 10)
BLOCK = 256


def retrieval(embeddings: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Every row queries all others.

    Args:
      embeddings: float32 [n, dim], L2-normalised, on the grid (so that similarities are exact).
      label: int64 [n].
    Returns:
      recall_at_k: share of queries with a row of their label among the k nearest. r_precision, map_at_r: of the R
      nearest, R being the other rows of the query's label; Musgrave et al., A Metric Learning Reality Check,
      section 4.4 (https://arxiv.org/abs/2003.08505). mean_distance: over all
      pairs; near 0 the embedding has collapsed. Ties go to the lower row. Rows alone in their class are no
      queries; `queries` counts the others.
    """
    n = len(label)
    _, which, size = np.unique(label, return_inverse=True, return_counts=True)
    relevant = size[which] - 1
    depth = min(n - 1, max(*RECALL_AT, int(relevant.max(initial=0))))
    hits = dict.fromkeys(RECALL_AT, 0.0)
    r_precision = precision = 0.0
    for start in range(0, n, BLOCK):
        similarity = (embeddings[start : start + BLOCK] @ embeddings.T).astype(np.float64)
        rows = np.arange(start, start + len(similarity))
        # One whole number orders by similarity, ties to the lower row; the query itself comes last.
        key = (similarity * 2.0**22).astype(np.int64) * 2**32 - np.arange(n)
        key[np.arange(len(rows)), rows] = -np.iinfo(np.int64).max
        top = np.argpartition(-key, depth - 1, axis=1)[:, :depth]
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(key, top, axis=1), axis=1), axis=1)
        query = relevant[rows] > 0
        good = (label[top] == label[rows, None])[query]
        for k in RECALL_AT:
            hits[k] += good[:, :k].any(axis=1).sum()
        r = relevant[rows][query, None]
        within = np.arange(depth) < r
        at = np.cumsum(good, axis=1) / (np.arange(depth) + 1)
        r_precision += ((good & within) / np.maximum(r, 1)).sum()
        precision += ((good & within) * at / np.maximum(r, 1)).sum()
    queries = int((relevant > 0).sum())
    if not queries:
        raise InputError("no class of this split has two rows; there is nothing to retrieve")
    total = embeddings.astype(np.float64).sum(axis=0)
    pairwise = (total @ total - (embeddings.astype(np.float64) ** 2).sum()) / (n * (n - 1))
    return {
        **{f"recall_at_{k}": hits[k] / queries for k in RECALL_AT},
        "r_precision": r_precision / queries,
        "map_at_r": precision / queries,
        "mean_distance": 2 - 2 * pairwise,
        "queries": queries,
    }


def pixels(corpus: Corpus, split: Split) -> np.ndarray:
    """float32 [rows, values], the payload itself, L2-normalised, on the grid: what no network has to beat."""
    tf = import_tensorflow()
    spec = next(iter(corpus.features.values()))
    if spec["kind"] == "text":
        raise InputError(f"{corpus.directory} holds texts; --pixels compares images and vectors")
    if None in spec["shape"]:
        raise InputError(f"{corpus.directory}: images differ in size, they cannot be compared pixel by pixel")
    rows = np.arange(split.rows)
    values = [
        decode_records(corpus.features, tf.constant(split.read(part)), tuple(spec["shape"])).numpy()
        for part in np.split(rows, rows[BLOCK::BLOCK])
    ]
    flat = np.concatenate(values).reshape(len(rows), -1)
    return to_grid(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))


def linear_probe(embeddings: np.ndarray, label: np.ndarray) -> float:
    """Accuracy of softmax regression on the frozen embeddings: fitted on half of each class, tried on the rest."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted_on = deal_rows(label, 2) == 0
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(embeddings[fitted_on], label[fitted_on])
    return float(probe.score(embeddings[~fitted_on], label[~fitted_on]))


def clusters(embeddings: np.ndarray, label: np.ndarray, seed: int) -> float:
    """Normalised mutual information of the labels and as many k-means clusters as there are labels."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    found = KMeans(len(np.unique(label)), n_init=1, random_state=seed).fit_predict(embeddings)
    return float(normalized_mutual_info_score(label, found))


def measures(
    embeddings: np.ndarray, label: np.ndarray, retrieval_only: bool = False, nmi: bool = False
) -> dict[str, Any]:
    """Every measure of a split's embeddings: see `retrieval`, `verification`, `linear_probe`, `clusters`."""
    found: dict[str, Any] = retrieval(embeddings, label)
    if not retrieval_only:
        several = len(np.unique(label)) > 1
        found |= verification(embeddings, label)
        found["linear_probe"] = linear_probe(embeddings, label) if several else None
    if nmi:
        found["nmi"] = clusters(embeddings, label, seed=0)
    return found


def embed_split(embedder: Embedder, split: Split) -> np.ndarray:
    """float32 [rows, dim]; the payload is in memory a part at a time."""
    parts = np.split(np.arange(split.rows), np.arange(CHUNK_ROWS, split.rows, CHUNK_ROWS))
    return np.concatenate([embedder(split.read(part), int(part[0])) for part in parts])


def evaluate(run_dir: Path, number: int, corpus: Corpus, split_name: str, **which: bool) -> dict[str, Any]:
    """Evaluates a round's checkpoint and writes the result into the round's directory. which: see `measures`."""
    split = corpus.split(split_name)
    embedder = Embedder(records.checkpoint_path(run_dir, number), corpus)
    result = {
        "format": "triplet-miner-evaluation/1",
        "split": split_name,
        "corpus_fingerprint": corpus.fingerprint,
        "checkpoint_digest": records.checkpoint_digest(embedder.model),
        **measures(embed_split(embedder, split), split.class_of(np.arange(split.rows)), **which),
    }
    records.write_json(records.round_dir(run_dir, number) / f"evaluation-{split_name}.json", result)
    return result


COLUMNS = {
    **{f"R@{k}": f"recall_at_{k}" for k in RECALL_AT}, "R-prec": "r_precision", "MAP@R": "map_at_r",
    "mean d": "mean_distance", "AUC": "roc_auc", "EER": "equal_error_rate", "VAL": "val_at_far_1e-3",
    "10-fold": "accuracy_10_fold", "probe": "linear_probe", "NMI": "nmi",
}  # fmt: skip


def table(rows: dict[str, dict[str, Any]]) -> str:
    shown = {head: name for head, name in COLUMNS.items() if any(name in row for row in rows.values())}
    widths = {head: 13 if f"{name}_std" in next(iter(rows.values())) else 8 for head, name in shown.items()}
    lines = [f"{'':<14}" + "".join(f"{head:>{widths[head]}}" for head in shown)]
    for title, row in rows.items():
        cells = [_cell(row.get(name), row.get(f"{name}_std")) for name in shown.values()]
        lines.append(f"{title:<14}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths.values(), strict=True)))
    return "\n".join(lines)


def _cell(value: float | None, spread: float | None) -> str:
    text = "-" if value is None else f"{value:.3f}"
    return text if spread is None else f"{text}±{spread:.3f}"


def main(argv: list[str]) -> int:
    parser = command.Parser("trainer.evaluate", "--run_dir DIR [options]", __doc__.splitlines()[0])
    parser.add_argument("--run_dir", type=storage.location, required=True, help="with the corpus and the rounds")
    parser.add_argument("--round", type=int, nargs="+", help="whose checkpoints (the newest)")
    parser.add_argument("--split", choices=records.SPLITS, default="eval", help="which rows (eval)")
    parser.add_argument("--pixels", action="store_true", help="also the payload itself, by cosine")
    parser.add_argument("--retrieval_only", action="store_true", help="no verification, no linear probe")
    parser.add_argument("--nmi", action="store_true", help="also normalised mutual information with k-means clusters")
    command.add_options(parser)
    arguments = parser.parse_args(argv)
    command.begin(arguments)
    corpus = records.open_corpus(arguments.run_dir)
    split = corpus.split(arguments.split)
    if not split.rows:
        raise InputError(f"{corpus.directory} has an empty {arguments.split} split; ingest with a share for it")
    newest = records.newest_round(arguments.run_dir, records.checkpoint_path)
    if newest is None:
        raise InputError(f"{arguments.run_dir} has no checkpoint yet. Next: make mine, or trainer.train --init")
    which = {"retrieval_only": arguments.retrieval_only, "nmi": arguments.nmi}
    rows = {}
    if arguments.pixels:
        label = split.class_of(np.arange(split.rows))
        rows["payload itself"] = measures(pixels(corpus, split), label, **which)
    records.check_split(split)
    for number in arguments.round or [newest]:
        if not records.checkpoint_path(arguments.run_dir, number).exists():
            raise InputError(f"round {number} has no checkpoint; the newest is round {newest}'s")
        rows[f"round {number}"] = evaluate(arguments.run_dir, number, corpus, arguments.split, **which)
    by = "unseen classes" if corpus.manifest["split_rule"]["by"] == "class" else "unseen examples"
    print(f"{arguments.split} split: {split.rows:,} rows of {len(split.labels):,} classes ({by})")
    print(table(rows))
    if not arguments.retrieval_only:
        print("AUC, EER, VAL at a false accept rate of 1e-3, 10-fold accuracy: whether two rows are of one class")
    command.note(split=arguments.split, evaluation=rows)
    return 0


if __name__ == "__main__":
    command.run(main)
