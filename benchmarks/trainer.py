"""What training costs beside the network itself: reading, rounds, image passes.

    make bench-trainer OMNIGLOT="images_background_small1.zip images_background_small2.zip"

Runs the project's own commands on Omniglot's small background sets, held-out classes unseen. About 20 minutes on 2
CPU cores.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.omniglot import merged
from benchmarks.table import Row, finish, paired, show

ROUNDS = 20
# Anchors a round, learning rate, rounds: about 60,000 image passes each.
SETTINGS = {
    "lone": [(500, "0.001", 40), (500, "0.003", 40), (1500, "0.001", 13), (1500, "0.003", 13)],
    "packs": [(250, "0.003", 30), (500, "0.001", 16), (500, "0.003", 16), (1500, "0.003", 6)],
}


def run(module: str, run_dir: Path, *arguments: object) -> None:
    call = [sys.executable, "-m", module, "--run_dir", str(run_dir), *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(call)}\n{done.stderr[-2000:]}")


def start(first: Path, target: Path) -> Path:
    """A run directory with the corpus and the warmed-up checkpoint of another."""
    return Path(shutil.copytree(first, target))


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


# ---- Reading. ----


def small(input_shape: tuple[int, ...]) -> Any:
    """The shipped network at about a tenth of its cost."""
    from trainer.models import keras

    inputs = keras.Input(input_shape)
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for filters in (8, 16, 16, 16):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.MaxPooling2D()(keras.layers.ReLU()(keras.layers.BatchNormalization()(x)))
    return keras.Model(inputs, keras.layers.UnitNormalization()(keras.layers.Dense(64)(keras.layers.Flatten()(x))))


def reading(run_dir: Path, what: str, build: Any, bound: float | None) -> Row:
    """Triplets a second with batches read from TFRecords, over the same steps on batches that are in memory."""
    from pipeline import records
    from trainer.data import triplet_batches
    from trainer.models import keras
    from trainer.step import Step, strategy_for

    corpus = records.open_corpus(run_dir)
    manifest = records.open_triplets(run_dir, 0, corpus)
    model = build if isinstance(build, keras.Model) else build((32, 32, 1))
    shape = tuple(model.input_shape[1:])

    def batches() -> Any:
        return triplet_batches(records.manifest_path(run_dir, 0).parent, manifest, shape, 128, seed=0)

    in_memory = list(batches())
    step = Step(model, keras.optimizers.Adam(1e-3), "triplet", 0.2, strategy_for([]), batches().element_spec)

    def train(dataset: Any) -> None:
        for batch in dataset:
            step([batch])

    train(in_memory[:4])
    ratio, memory, files = paired(lambda: train(in_memory), lambda: train(batches()))
    note = f"{manifest['triplets'] / files:,.0f} and {manifest['triplets'] / memory:,.0f} triplets/s"
    return Row(what=what, value=ratio, bound=bound, at_least=True, note=note)


# ---- Image passes. ----


def passes_and_quality(run_dir: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """After each trained round: image passes so far, MAP@R on the validation split and on the eval split."""
    trained = sorted(run_dir.glob("rounds/*/train/metrics.json"))
    passes = np.cumsum([read(path)["image_passes"] for path in trained])
    numbers = range(1, len(trained) + 1)
    run("trainer.evaluate", run_dir, "--retrieval_only", "--round", *numbers)
    quality = [
        [read(run_dir / f"rounds/{n:04d}/evaluation-{split}.json")["map_at_r"] for n in numbers]
        for split in ("validation", "eval")
    ]
    return passes, np.array(quality[0]), np.array(quality[1])


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


def image_passes(warm: Path, scratch: Path) -> tuple[Row, int, str]:
    """Packs over lone triplets, each at the learning rate and length of a round that does best on validation.

    And how many anchors the best rounds of packs have, and their learning rate.
    """
    best, measured = {}, {}
    for kind, settings in SETTINGS.items():
        found = {}
        for setting in settings:
            anchors, rate, rounds_ = setting
            run_dir = start(warm, scratch / f"{kind}-{anchors}-{rate}")
            mine = f"--anchors {anchors}" + (" --pack_rows 3" if kind == "lone" else "")
            flags = ("--plain", "--mine", mine, "--train", f"--learning_rate {rate}")
            run("pipeline.rounds", run_dir, "--rounds", rounds_, *flags)
            found[setting] = passes_and_quality(run_dir)
        best[kind] = max(found, key=lambda setting: found[setting][1].max())
        measured[kind] = found[best[kind]]
    target = float(measured["lone"][2].max())
    needed = {kind: passes_to(target, passes, quality) for kind, (passes, _, quality) in measured.items()}
    note = "; ".join(
        f"{kind}, {anchors} anchors a round, rate {rate}: {needed[kind]:,.0f} passes"
        for kind, (anchors, rate, _) in best.items()
    )
    what = "image passes to a fixed MAP@R, packs over lone triplets, each at its best"
    row = Row(what=what, value=needed["packs"] / needed["lone"], bound=0.7, note=f"{note}; MAP@R {target:.3f}")
    return row, *best["packs"][:2]


# ---- Rounds. ----


def timed_rounds(run_dir: Path, *arguments: str) -> tuple[float, list[float]]:
    """Wall seconds from the first round's checkpoint to the end of the last round, and when each round's line came.

    The first round has the start of the processes.
    """
    call = [sys.executable, "-m", "pipeline.rounds", "--run_dir", str(run_dir), "--rounds", str(ROUNDS), *arguments]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    ends = [time.time() for line in process.stdout if line.split()[0].isdigit()]
    if process.wait() or len(ends) != ROUNDS:
        raise SystemExit(f"{' '.join(call)}: exit code {process.returncode}")
    return ends[-1] - (run_dir / "rounds/0001/checkpoint/model.keras").stat().st_mtime, ends


def rounds(warm: Path, scratch: Path, anchors: int, rate: str) -> list[Row]:
    options = ("--plain", "--mine", f"--anchors {anchors}", "--train", f"--learning_rate {rate}")
    in_turn, ends = timed_rounds(start(warm, scratch / "in-turn"), *options)
    overlapped, _ = timed_rounds(start(warm, scratch / "overlapped"), *options, "--overlap")
    fixed = []
    for number in range(1, ROUNDS):
        directory = scratch / "in-turn" / "rounds" / f"{number:04d}"
        work = sum(read(directory / "stats.json")["worker_seconds"].values())
        fixed.append(ends[number] - ends[number - 1] - work - read(directory / "train" / "metrics.json")["seconds"])
    told = []
    for run_dir, seconds in ((scratch / "overlapped", overlapped), (scratch / "in-turn", in_turn)):
        sets = len(list(run_dir.glob("rounds/*/triplets/triplets.json")))
        best = read(run_dir / "best/best.json")["validation_map_at_r"]
        told.append(f"{seconds:.1f} s, {sets} sets mined, best validation MAP@R {best:.3f}")
    name = f"{ROUNDS} overlapped rounds of {anchors} anchors over {ROUNDS} in turn, from the first checkpoint on"
    return [
        Row(what=name, value=overlapped / in_turn, bound=0.8, note="; ".join(told)),
        Row(
            what="seconds of a round beside embedding, scan, writing and training",
            value=float(np.median(fixed)), bound=5.0, note=f"validation included; the longest {max(fixed):.1f} s",
        ),
    ]  # fmt: skip


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
        run("pipeline.ingest", warm, "--source", f"images:{merged(arguments.omniglot, scratch / 'omniglot')}")
        run("trainer.train", warm, "--online")

        mined = start(warm, scratch / "mined")
        run("pipeline.mine", mined)
        from pipeline import records

        shipped = records.load_checkpoint(records.checkpoint_path(mined, 0))
        add(reading(mined, "triplets/s from TFRecords over the same steps from memory", shipped, 0.9))
        add(reading(mined, "the same, a network of about a tenth of the cost", small, None))
        manifest = read(records.manifest_path(mined, 0))
        each = {scope: sum(kinds.values()) / manifest["rows"] for scope, kinds in manifest["counts"].items()}
        note = ", ".join(f"{value:.2f} of scope {scope}" for scope, value in each.items())
        what = "triplets per image pass, packs of 128 rows"
        add(Row(what=what, value=sum(each.values()), bound=1.5, at_least=True, note=note))
        row, anchors, rate = image_passes(warm, scratch)
        add(row)
        for row in rounds(warm, scratch, anchors, rate):
            add(row)
    return finish("trainer", rows)


if __name__ == "__main__":
    sys.exit(main())
