"""What training costs beside the network itself: reading, rounds, image passes.

    make bench-trainer OMNIGLOT="images_background_small1.zip images_background_small2.zip"

Works on Omniglot's small background sets, held-out classes unseen. About 15 minutes on 2 CPU cores.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks.omniglot import merged
from benchmarks.runs import IN_PROCESS, ingest_source
from benchmarks.table import Row, finish, paired, seconds, show
from pipeline.corpus.corpus import Corpus
from pipeline.embedding.decoding import Inputs
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.network import load_network
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.mining.job import mine
from pipeline.mining.manifest import open_triplets
from pipeline.mining.options import MiningOptions
from pipeline.packs.packs import PackOptions
from pipeline.reporting.results import Metrics
from trainer.batches import triplet_batches
from trainer.loop import train_newest
from trainer.measures.evaluation import evaluate_rounds
from trainer.options import TrainOptions, WarmupOptions
from trainer.recipe import Recipe
from trainer.rounds import run_rounds
from trainer.step import Step, strategy_for
from trainer.warming import warm_up

ROUNDS = 10
# Anchors a round, learning rate, rounds: about 60,000 image passes each.
SETTINGS = {
    "lone": [(500, 0.001, 40), (500, 0.003, 40), (1500, 0.001, 13), (1500, 0.003, 13)],
    "packs": [(250, 0.003, 30), (500, 0.001, 16), (500, 0.003, 16), (1500, 0.003, 6)],
}


def copied(first: Path, target: Path) -> Path:
    """A run directory with the corpus and the warmed-up checkpoint of another."""
    return Path(shutil.copytree(first, target))


# ---- Reading. ----


def small(input_shape: tuple[int, ...]) -> Any:
    """The shipped network at about a tenth of its cost."""
    inputs = keras.Input(input_shape)
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for filters in (8, 16, 16, 16):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.MaxPooling2D()(keras.layers.ReLU()(keras.layers.BatchNormalization()(x)))
    return keras.Model(inputs, keras.layers.UnitNormalization()(keras.layers.Dense(64)(keras.layers.Flatten()(x))))


def reading(run_dir: Path, what: str, model: keras.Model, bound: float | None) -> Row:
    """Triplets a second with batches read from TFRecords, over the same steps on batches that are in memory."""
    round = Run(run_dir).round(0)
    manifest = open_triplets(round, Corpus.open(run_dir))

    def batches() -> Any:
        inputs = Inputs(manifest.feature, tuple(model.input_shape[1:]))
        return triplet_batches(round.triplets, manifest, inputs, 128, seed=0)

    in_memory = list(batches())
    step = Step(model, keras.optimizers.Adam(1e-3), "triplet", 0.2, strategy_for([]), batches().element_spec)

    def train(dataset: Any) -> None:
        for batch in dataset:
            step([batch])

    train(in_memory[:4])
    ratio, memory, files = paired(lambda: train(in_memory), lambda: train(batches()))
    note = f"{manifest.triplets / files:,.0f} and {manifest.triplets / memory:,.0f} triplets/s"
    return Row(what=what, value=ratio, bound=bound, at_least=True, note=note)


# ---- Image passes. ----


def metrics_of(run_dir: Path) -> list[Metrics]:
    """Of all rounds that were trained."""
    return [manifests.read(found.metrics, Metrics) for found in Run(run_dir).rounds() if found.metrics.exists()]


def passes_and_quality(run_dir: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """After each trained round: image passes so far, MAP@R on the validation split and on the eval split."""
    passes = np.cumsum([found.image_passes for found in metrics_of(run_dir)])
    numbers = tuple(range(1, len(passes) + 1))
    measured = (evaluate_rounds(run_dir, numbers, split, retrieval_only=True) for split in ("validation", "eval"))
    validation, held_out = (np.array([m["map_at_r"] for m in found.measures.values()]) for found in measured)
    return passes, validation, held_out


def passes_to(target: float, passes: np.ndarray, quality: np.ndarray) -> float:
    """Image passes at which MAP@R first reaches the target, on the straight line between two rounds."""
    reached = np.flatnonzero(quality >= target)
    if not len(reached):
        return float("nan")
    k = reached[0]
    if k == 0:
        return float(passes[0])
    share = (target - quality[k - 1]) / (quality[k] - quality[k - 1])
    return float(passes[k - 1] + share * (passes[k] - passes[k - 1]))


def image_passes(warm: Path, scratch: Path) -> tuple[Row, Recipe]:
    """Packs over lone triplets, each at the learning rate and length of a round that does best on validation.

    And the recipe of the best rounds of packs.
    """
    best, measured = {}, {}
    for kind, settings in SETTINGS.items():
        packing = PackOptions(pack_rows=3) if kind == "lone" else PackOptions()
        found = {}
        for anchors, rate, rounds in settings:
            run_dir = copied(warm, scratch / f"{kind}-{anchors}-{rate}")
            mining, training = MiningOptions(anchors=anchors), TrainOptions(learning_rate=rate)
            for _ in range(rounds):
                mine(run_dir, mining, packing, IN_PROCESS)
                train_newest(run_dir, training)
                keras.backend.clear_session()
            found[anchors, rate] = passes_and_quality(run_dir)
        best[kind] = max(found, key=lambda setting: found[setting][1].max())
        measured[kind] = found[best[kind]]
    target = float(measured["lone"][2].max())
    needed = {kind: passes_to(target, passes, quality) for kind, (passes, _, quality) in measured.items()}
    note = "; ".join(
        f"{kind}, {anchors} anchors a round, rate {rate}: {needed[kind]:,.0f} passes"
        for kind, (anchors, rate) in best.items()
    )
    what = "image passes to a fixed MAP@R, packs over lone triplets, each at its best"
    row = Row(what=what, value=needed["packs"] / needed["lone"], bound=0.7, note=f"{note}; MAP@R {target:.3f}")
    anchors, rate = best["packs"]
    return row, Recipe(mining=MiningOptions(anchors=anchors), train=TrainOptions(learning_rate=rate))


# ---- Rounds. ----


def beside(run_dir: Path, recipe: Recipe) -> Row:
    """What a round takes beside its forward passes and its training, by when each round's page was written."""
    run_rounds(run_dir, ROUNDS, recipe, IN_PROCESS)
    run, corpus = Run(run_dir), Corpus.open(run_dir)
    checkpoint = run.round(0).checkpoint
    embedder = Embedder(load_network(checkpoint), corpus.feature)
    embedding = min(seconds(lambda: embedder.split(corpus.split("train")), 3))
    trained = np.array([found.seconds for found in metrics_of(run_dir)])
    ends = [run.round(number).report.stat().st_mtime for number in range(len(trained))]
    rest = np.diff(ends) - trained[1:] - embedding
    return Row(
        what="seconds of a round beside embedding and training", value=float(np.median(rest)), bound=5.0,
        note=f"scan, packs, validation and report; the longest {rest.max():.1f} s",
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--omniglot", nargs="+", required=True, help="folders or zips of Omniglot's small sets")
    arguments = parser.parse_args()
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        show(row)

    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        warm = scratch / "warm"
        ingest_source(warm, f"images:{merged(arguments.omniglot, scratch / 'omniglot')}")
        warm_up(warm, WarmupOptions())

        mined = copied(warm, scratch / "mined")
        found = mine(mined, MiningOptions(), PackOptions(), IN_PROCESS)
        shipped = load_network(Run(mined).round(0).checkpoint).model
        add(reading(mined, "triplets/s from TFRecords over the same steps from memory", shipped, 0.9))
        tenth = small(shipped.input_shape[1:])
        add(reading(mined, "the same, a network of about a tenth of the cost", tenth, None))
        each = {scope: sum(kinds.values()) / found.rows for scope, kinds in found.counts.items()}
        note = ", ".join(f"{value:.2f} of scope {scope}" for scope, value in each.items())
        what = "triplets per image pass, packs of 128 rows"
        add(Row(what=what, value=sum(each.values()), bound=1.5, at_least=True, note=note))
        row, recipe = image_passes(warm, scratch)
        add(row)
        add(beside(copied(warm, scratch / "rounds"), recipe))
    return finish("trainer", rows)


if __name__ == "__main__":
    sys.exit(main())
