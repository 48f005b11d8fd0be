"""Every measure of a checkpoint on a split, and the table of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.corpus import Corpus
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.network import load_network
from pipeline.errors import InputError
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.files.storage import check_writable, location
from pipeline.reporting.results import Best, Evaluation, Measures, worse_than_untrained
from pipeline.triplets.arrays import codes_of, normalised, refuse_missing
from pipeline.triplets.rows import to_grid
from trainer.measures.baselines import measure_baselines
from trainer.measures.retrieval import RECALL_AT, queries_of, retrieval
from trainer.measures.verification import deal_rows, verification


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Measures by what they are of. known: classes that the train split has too. baselines: without training.

    Its text is a table.
    """

    split: str
    rows: int
    classes: int
    known: int
    baselines: dict[str, Measures]
    measures: dict[str, Measures]

    def __str__(self) -> str:
        seen = {0: "unseen classes", self.classes: "known classes"}.get(self.known, f"{self.known:,} of them known")
        lines = [f"{self.split} split: {self.rows:,} rows of {self.classes:,} classes ({seen})"]
        last = list(self.measures)[-1]
        if (queries := self.measures[last]["queries"]) != self.rows:
            lines[0] += f", {queries:,} of them queries with a row of their class to find"
        lines.append(table(self.baselines | self.measures))
        if any("roc_auc" in row for row in self.measures.values()):
            lines.append(
                "AUC, EER, VAL at a false accept rate of 1e-3, 10-fold accuracy: whether two rows are of one class"
            )
        worse = worse_than_untrained(self.baselines, last, self.measures[last]["map_at_r"])
        return "\n".join([*lines, worse] if worse else lines)


def linear_probe(embeddings: np.ndarray, label: np.ndarray) -> float | None:
    """Accuracy of softmax regression on the frozen embeddings: fitted on half of each class, tried on the rest. None
    where the first half is of one class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted_on = deal_rows(label, 2) == 0
    if len(np.unique(label[fitted_on])) < 2:
        return None
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(embeddings[fitted_on], label[fitted_on])
    return float(probe.score(embeddings[~fitted_on], label[~fitted_on]))


def clusters(embeddings: np.ndarray, label: np.ndarray, seed: int) -> float:
    """Normalised mutual information of the labels and as many k-means clusters as there are labels."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    found = KMeans(len(np.unique(label)), n_init=1, random_state=seed).fit_predict(embeddings)
    return float(normalized_mutual_info_score(label, found))


def measure(
    embeddings: np.ndarray,
    label: np.ndarray,
    retrieval_only: bool = False,
    nmi: bool = False,
    query: np.ndarray | None = None,
) -> Measures:
    """Every measure of a split's embeddings: see `retrieval`, `verification`, `linear_probe`, `clusters`."""
    found: Measures = dict(retrieval(embeddings, label, query))
    if not retrieval_only:
        found |= verification(embeddings, label)
        found["linear_probe"] = linear_probe(embeddings, label)
    if nmi:
        found["nmi"] = clusters(embeddings, label, seed=0)
    return found


def evaluate_embeddings(embeddings: Any, labels: Any, *, retrieval_only: bool = True, nmi: bool = False) -> Measures:
    """How good any encoder's embeddings are: every row queries all others.

    Args:
      embeddings: numbers [n, dim], of NumPy, TensorFlow or PyTorch; L2-normalised here. labels: [n].
      retrieval_only: False adds verification (are two rows of one class?) and a linear probe.
      nmi: adds normalised mutual information with k-means clusters.
    Returns:
      recall_at_1, recall_at_5, recall_at_10, r_precision, map_at_r, mean_distance, queries, and what else was asked
      for. Definitions: docs/definitions.md.
    Raises:
      InputError: for shapes that do not fit, rows that are zero or not finite, or if no class has two rows.

    >>> evaluate_embeddings([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], ["a", "a", "b", "b"])["map_at_r"]
    1.0
    """
    vectors, code = normalised(embeddings), codes_of("label", labels)
    refuse_missing(code)
    if code.shape != vectors.shape[:1]:
        raise InputError(f"expected embeddings [n, dim] and labels [n]; found {vectors.shape}, {code.shape}")
    return measure(to_grid(vectors), code, retrieval_only, nmi)


def kept_checkpoint(run: Run, number: int) -> Path:
    """A round's checkpoint. If somebody made room and it is gone, its copy in best/, where that is of this round."""
    own = run.round(number).checkpoint
    if own.exists():
        return own
    best = manifests.read_if_there(run.best, Best)
    return run.best_checkpoint if best and best.round == number else own


def evaluate_rounds(
    run_dir: Path | str,
    rounds: tuple[int | str, ...] = (),
    split_name: str = "eval",
    **which: bool,
) -> Evaluated:
    """Evaluates rounds' checkpoints, the newest if none is named; each result is written into its round's folder.

    Args:
      rounds: numbers; `best` is the one that `pipeline.rounds` kept. None given: the best, or else the newest.
      split_name: `train`, `validation` or `eval`.
      which: see `measure`.
    Raises:
      InputError: if a round has no checkpoint, if the split is empty, or if this user may not write there.
    """
    run_dir = location(run_dir)
    run, corpus = Run(run_dir), Corpus.open(run_dir)
    split, newest = corpus.split(split_name), run.newest_checkpoint()
    if not split.rows:
        raise InputError(f"{corpus.directory} has an empty {split_name} split; ingest with a share for it")
    if newest is None:
        raise InputError(f"{run_dir} has no checkpoint. Make a first one: python -m trainer.init --run_dir {run_dir}")
    best = manifests.read_if_there(run.best, Best)
    if not rounds:
        rounds = ("best",) if best else (newest.number,)
    if "best" in rounds and not best:
        raise InputError(f"{run.best} is missing: pipeline.rounds keeps the best checkpoint. Name a round's number.")
    unknown = [name for name in rounds if isinstance(name, str) and name != "best"]
    if unknown:
        raise InputError(f"there is no round {unknown[0]!r}; give numbers, or best")
    titles = {best.round if best and number == "best" else int(number): number for number in rounds}
    for number in titles:
        if not kept_checkpoint(run, number).exists():
            raise InputError(f"round {number} has no checkpoint; the newest is round {newest.number}'s")
    for folder in (run_dir, *(run.round(number).path for number in titles)):
        check_writable(folder)
    split.check()
    label, rows = split.class_of(np.arange(split.rows)), dict[str, Measures]()
    query = queries_of(corpus, split)
    for number, title in titles.items():
        round = run.round(number)
        embedder = Embedder(load_network(kept_checkpoint(run, number)), corpus.feature)
        found = measure(embedder.split(split), label, query=query, **which)
        rows[f"round {number}" + (", best" if title == "best" else "")] = found
        evaluation = Evaluation(
            split=split_name, corpus_fingerprint=corpus.fingerprint, measures=found,
            checkpoint_digest=embedder.network.digest(), round=number,
        )  # fmt: skip
        manifests.write(round.evaluation(split_name), evaluation)
    known = corpus.known_classes(split_name)
    return Evaluated(
        split=split_name, rows=split.rows, classes=split.classes, known=known, measures=rows,
        baselines=measure_baselines(corpus, split_name),
    )  # fmt: skip


COLUMNS = {
    **{f"R@{k}": f"recall_at_{k}" for k in RECALL_AT}, "R-prec": "r_precision", "MAP@R": "map_at_r",
    "mean d": "mean_distance", "AUC": "roc_auc", "EER": "equal_error_rate", "VAL": "val_at_far_1e-3",
    "10-fold": "accuracy_10_fold", "probe": "linear_probe", "NMI": "nmi",
}  # fmt: skip


def table(rows: dict[str, Measures]) -> str:
    shown = {head: name for head, name in COLUMNS.items() if any(name in row for row in rows.values())}
    widths = {head: 13 if any(f"{name}_std" in row for row in rows.values()) else 8 for head, name in shown.items()}
    first = max(map(len, rows)) + 2
    lines = [" " * first + "".join(f"{head:>{widths[head]}}" for head in shown)]
    for title, row in rows.items():
        cells = [_cell(row.get(name), row.get(f"{name}_std")) for name in shown.values()]
        lines.append(f"{title:<{first}}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths.values(), strict=True)))
    return "\n".join(lines)


def _cell(value: float | None, spread: float | None) -> str:
    text = "-" if value is None else f"{value:.3f}"
    return text if spread is None else f"{text}±{spread:.3f}"
