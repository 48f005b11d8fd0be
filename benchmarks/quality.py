"""What offline mining brings: held-out retrieval against in-batch mining, at equal numbers of trained images.

    make bench-quality OMNIGLOT="images_background_small1.zip images_background_small2.zip"

The project's own commands train every row, on Omniglot's characters (those that several folders share count once), each
also turned by 90, 180 and 270 degrees as classes of their own (as in Matching Networks, section 4.1.1,
https://arxiv.org/abs/1606.04080). Characters, with their turns, are held out whole. Each seed draws which, for the
gain differs more between splits of the characters than between seeds. Settings were chosen with other splits and seeds
(`--tune` is the grid of rates and margins). An image pass is an image forwarded and backwarded; warm-up passes count.
"""

import argparse
import contextlib
import io
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.omniglot import merged
from benchmarks.table import Row, finish, show
from pipeline import ingest, mine, records, selection, spread
from pipeline.embed import Embedder
from pipeline.pool import Pool
from pipeline.rounds import MINE, TRAIN
from trainer import train
from trainer.evaluate import retrieval

BATCH = 128  # images a step in-batch; with 64 or 32 it ends lower
FORWARD = 1 / 3  # of a training pass: what a forward pass of mining costs
TUNING_SPLIT = 0  # of the characters
SPLITS = {6: 3, 7: 4, 8: 5}  # of the characters, by the runs' seed: no setting was chosen on these
PICTURE = Path(__file__).parent.parent / "docs" / "quality.png"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """warmup: share of the passes that are in-batch. online, mine, train: flags of the commands.

    rounds: how many, of so many passes in all; None for in-batch only. rows: that one of `--anchors` brings into a pack
    at the most: with corpus triplets its own class' and its negative's, or three. train: {rounds} is their number.
    control: the rounds' packs are replaced by as many that no embedding has a part in: `random`, of randomly drawn
    classes; or `even`, every row once in random company.
    """

    name: str
    online: tuple[str, ...]
    warmup: float = 1.0
    rounds: Callable[[int], int] | None = None
    rows: int = 8
    mine: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    control: str = ""

    def anchors(self, passes: int) -> int:
        """Of a round."""
        assert self.rounds
        return round((1 - self.warmup) * passes / self.rounds(passes) / self.rows)


RATE = ("--learning_rate", "0.003")
ONLINE = Recipe(name="in-batch, best margin", online=(*RATE, "--margin", "1.0"))
# The best of what was tried, with splits 0 to 2 and seeds 0 and 1.
OFFLINE = Recipe(
    name="packs with stored rows", online=ONLINE.online, warmup=0.24, rounds=lambda passes: passes // 16_000, rows=1,
    mine=tuple(MINE.split()), train=(*TRAIN.split(), "--decay_rounds", "{rounds}"),
)  # fmt: skip
PLAIN = Recipe(
    name="packs, the triplet loss alone", online=ONLINE.online, warmup=0.5, rounds=lambda passes: passes // 16_000,
    train=RATE,
)  # fmt: skip
FULL_ONLY = ("plain-control", "lone")
RECIPES = {
    "online": ONLINE,
    "packs": OFFLINE,
    "control": replace(OFFLINE, name="packs of random classes with stored rows", control="random"),
    "even": replace(OFFLINE, name="packs of each row once, at random, with stored rows", control="even"),
    "plain": PLAIN,
    "plain-control": replace(PLAIN, name="packs of random classes, the triplet loss alone", control="random"),
    "lone": replace(PLAIN, name="lone triplets, the triplet loss alone", rows=3, mine=("--pack_rows", "3")),
}


# ---- The data. ----


def turned(upright: records.Corpus, split: str, path: Path) -> None:
    """Writes a split's images, and their three turns as classes of their own, for the source `arrays`."""
    from PIL import Image

    there = upright.split(split)
    found = [records.parse_example(record) for record in there.read(np.arange(there.rows))]
    images = np.stack([np.asarray(Image.open(io.BytesIO(e["image"][0])).convert("L")) for e in found])
    labels = np.array([e["label"][0].decode() for e in found])
    np.savez(
        path, images=np.concatenate([np.rot90(images, turn, axes=(1, 2)) for turn in range(4)]),
        labels=np.concatenate([np.char.add(labels, f"/{90 * turn}") for turn in range(4)]),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Data:
    """A run directory with nothing but a corpus, and the rows that are held out: (corpus, split) by name."""

    run_dir: Path
    held_out: dict[str, tuple[records.Corpus, str]]


def omniglot(sources: list[str], scratch: Path, seed: int) -> Data:
    """seed: of the split of the characters."""
    scratch.mkdir()
    upright = scratch / "upright"
    shares = ["--validation_share", "0.15", "--eval_share", "0.25", "--seed", seed]
    quietly(ingest.main, "--run_dir", upright, "--source", f"images:{merged(sources, scratch / 'characters')}", *shares)
    corpus = records.open_corpus(upright)
    for split in records.SPLITS:
        turned(corpus, split, scratch / f"{split}.npz")
        source = ["--source", f"arrays:{scratch / split}.npz", "--validation_share", "0", "--eval_share", "0"]
        quietly(ingest.main, "--run_dir", scratch / split, *source)
    held_out = {split: (records.open_corpus(scratch / split), "train") for split in records.SPLITS[1:]}
    return Data(run_dir=scratch / "train", held_out=held_out)


def fashion_mnist(directory: str, scratch: Path) -> Data:
    run_dir = scratch / "fashion-mnist"
    quietly(ingest.main, "--run_dir", run_dir, "--source", f"fashion_mnist:{directory}")
    corpus = records.open_corpus(run_dir)
    return Data(run_dir=run_dir, held_out={split: (corpus, split) for split in records.SPLITS[1:]})


# ---- A run. ----


def quietly(main: Any, *arguments: object) -> None:
    """One of our commands, in this process."""
    import keras

    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main([str(argument) for argument in arguments])
    keras.backend.clear_session()
    assert code == 0, said.getvalue()


def evaluated(checkpoint: Path, data: Data, split: str) -> dict[str, float]:
    corpus, name = data.held_out[split]
    of = corpus.split(name)
    rows = np.arange(of.rows)
    found = retrieval(Embedder(checkpoint, corpus)(of.read(rows)), of.class_of(rows))
    return {"map_at_r": found["map_at_r"], "recall_at_1": found["recall_at_1"]}


@contextlib.contextmanager
def fresh(data: Data) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=data.run_dir.parent) as scratch:
        run_dir = Path(scratch, "run")
        shutil.copytree(data.run_dir / "corpus", run_dir / "corpus")
        yield run_dir


def run(recipe: Recipe, data: Data, passes: int, seed: int, split: str) -> dict[str, Any]:
    """Trains with `recipe` for about that many image passes. Evaluates each round's checkpoint."""
    started = time.time()
    with fresh(data) as run_dir:
        common = ["--run_dir", run_dir, "--seed", seed]
        steps = max(1, round(recipe.warmup * passes / BATCH))
        quietly(train.main, *common, "--online", "--steps", steps, *recipe.online)
        done, mined, triplets, curve = steps * BATCH, 0, 0, []
        rounds = recipe.rounds(passes) if recipe.rounds else 0
        for number in range(rounds):
            curve.append((done, evaluated(records.checkpoint_path(run_dir, number), data, split)))
            quietly(mine.main, *common, "--anchors", recipe.anchors(passes), *recipe.mine)
            if recipe.control:
                random_packs(run_dir, number, seed, recipe.control == "even")
            quietly(train.main, *common, *(flag.format(rounds=rounds) for flag in recipe.train))
            told = json.loads((records.round_dir(run_dir, number) / "train" / "metrics.json").read_text())
            done += told["image_passes"]
            triplets += sum(epoch["triplets"] for epoch in told["epochs"])
            mined += records.open_corpus(run_dir).split("train").rows
        newest = records.newest_round(run_dir, records.checkpoint_path)
        assert newest is not None
        end = evaluated(records.checkpoint_path(run_dir, newest), data, split)
    return {
        "recipe": recipe.name, "seed": seed, "passes": done, "mined": mined, "triplets": triplets, **end,
        "curve": [*curve, (done, end)], "seconds": time.time() - started,
    }  # fmt: skip


def random_packs(run_dir: Path, number: int, seed: int, even: bool) -> None:
    """Replaces a mined round's packs by packs of about as many rows in all, but random ones, no corpus triplets.

    even: every row once, as `spread` deals them when embeddings say nothing. Else of randomly drawn classes, each with
    as many rows as a pack is filled to, or more where there are too few classes to fill it.
    """
    path = records.manifest_path(run_dir, number)
    manifest = records.read_json(path, records.TRIPLETS_FORMAT)
    options = manifest["options"]
    names = ("margin", "positives", "seed", "min_negative_distance", "min_negative_ratio")
    rule = selection.Rule(
        shares=tuple(options["shares"].items()), round=number, pick=options["pack_pick"],
        **{name: options[name] for name in names},
    )  # fmt: skip
    job = mine.Job(
        run_dir=run_dir, round=number, rule=rule, corpus_fingerprint=manifest["corpus_fingerprint"],
        checkpoint_digest=manifest["checkpoint_digest"],
    )  # fmt: skip
    pool = job.open_pool()
    rng = np.random.default_rng([seed, number])
    drawn = (each_row_once if even else random_classes)(rule, pool, rng, options, manifest["rows"])
    payload, shards, triplets = mine.Payload(pool), manifest["shards"], 0
    for shard, entry in enumerate(shards):
        some = drawn.take(*(n * len(drawn) // len(shards) for n in (shard, shard + 1)))
        written = list(mine.serialised_packs(rule, pool, payload, some, True))
        entry.update(records.write_framed(path.parent / entry["file"], [(part, len(n)) for part, n, _ in written]))
        sizes = [int(n) for _, of_part, _ in written for n in of_part]
        entry["max_pack_triplets"] = max(sizes, default=0)
        triplets += sum(sizes)
    digest = records.sha256_of_json([entry["sha256"] for entry in shards])
    made = {"triplets": triplets, "packs": len(drawn), "rows": len(drawn.rows), "triplet_digest": digest}
    records.write_json(path, {**manifest, **made})


def random_classes(
    rule: selection.Rule, pool: Pool, rng: np.random.Generator, options: dict[str, Any], rows: int
) -> mine.Packs:
    first = pool.split.first_rows
    width = min(len(pool.split.labels), options["pack_rows"] // options["fill"])
    fill = options["pack_rows"] // width
    packs = round(rows / (fill * width))
    usable = np.flatnonzero(np.diff(first) >= fill)
    classes = [rng.choice(usable, width, replace=False) for _ in range(packs)]
    drawn = [first[c] + rng.choice(first[c + 1] - first[c], fill, replace=False) for c in np.concatenate(classes)]
    return bare_packs(np.concatenate(drawn), np.arange(packs + 1) * fill * width)


def each_row_once(
    rule: selection.Rule, pool: Pool, rng: np.random.Generator, options: dict[str, Any], rows: int
) -> mine.Packs:
    every = pool.row(np.arange(pool.rows))
    noise = selection.to_grid(rng.standard_normal((len(every), 8)).astype(np.float32))
    block = selection.Block(row=every, embedding=noise)
    groups = spread.group_rows(rule, block, pool.split.class_of(every), options["fill"])
    place = rng.permutation(len(pool.split.labels))[groups.label]
    dealt, starts = spread.deal(rule, groups, place, options["pack_rows"], options["fill"])
    starts = starts[: np.searchsorted(starts, rows, "right")]
    return bare_packs(dealt[: starts[-1]], starts)


def bare_packs(rows: np.ndarray, starts: np.ndarray) -> mine.Packs:
    """Without corpus triplets."""
    none = np.zeros(len(starts), np.int64)
    return mine.Packs(
        shard="control", rows=rows, starts=starts, triplets=selection.Triplets.none(), triplet_starts=none
    )


# ---- The table. ----


def tune(data: Data, passes: int) -> None:
    """Prints MAP@R on the validation characters for learning rates and margins, one seed each."""
    for rate in ("0.001", "0.003", "0.01"):
        for margin in ("0.2", "0.5", "1.0"):
            flags = ("--learning_rate", rate, "--margin", margin)
            online = replace(ONLINE, online=flags)
            offline = replace(OFFLINE, train=(*OFFLINE.train, *flags[:2]), mine=(*OFFLINE.mine, *flags[2:]))
            for name, recipe in (("in-batch", online), ("packs", offline)):
                found = run(recipe, data, passes, 0, "validation")
                print(f"{name:<10}rate {rate}  margin {margin}  validation MAP@R {found['map_at_r']:.3f}", flush=True)


def table(of_seed: dict[int, Data], names: list[str], passes: int) -> tuple[dict[str, Any], list[Row]]:
    """Every recipe for every seed, on its data; the in-batch ones as many passes as the packs of that seed took."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    runs["online-counted"] = []

    def add(name: str, found: dict[str, Any]) -> None:
        runs[name].append(found)
        print(f"  {name:<16}seed {found['seed']}  {found['passes']:>9,} passes  R@1 {found['recall_at_1']:.3f}  "
              f"MAP@R {found['map_at_r']:.3f}  {found['seconds']:4.0f} s", flush=True)  # fmt: skip

    for seed, data in of_seed.items():
        packs_run = run(RECIPES["packs"], data, passes, seed, "eval")
        add("packs", packs_run)
        for name in (name for name in names if name != "packs"):
            equal = passes if RECIPES[name].rounds else packs_run["passes"]
            add(name, run(RECIPES[name], data, equal, seed, "eval"))
        counted = packs_run["passes"] + packs_run["mined"] * FORWARD
        add("online-counted", run(RECIPES["online"], data, round(counted), seed, "eval"))

    def minus(one: str, other: str, bound: float | None, what: str = "") -> Row:
        gaps = [a["map_at_r"] - b["map_at_r"] for a, b in zip(runs[one], runs[other], strict=True)]
        each = ", ".join(f"{gap:+.3f}" for gap in gaps)
        name = f"MAP@R, {RECIPES[one].name} minus {what or RECIPES[other].name}"
        return Row(what=name, value=statistics.mean(gaps), bound=bound, at_least=True, note=f"each seed {each}")

    rows = [
        minus("packs", "online", 0.02, "the best in-batch rule, equal passes"),
        minus("packs", "control", 0.01),
        minus("packs", "online-counted", 0.0, "in-batch, mining's passes counted"),
    ]
    more = [("packs", "even"), ("plain", "online"), ("plain", "plain-control"), ("plain", "lone")]
    rows += [minus(one, other, None) for one, other in more if {one, other} <= set(names)]
    return {name: summary(found) for name, found in runs.items() if found}, rows


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    def over(key: str) -> list[float]:
        values = [float(one[key]) for one in found]
        return [statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0]

    keys = ("map_at_r", "recall_at_1", "passes", "mined", "triplets", "seconds")
    return {"recipe": found[0]["recipe"], "runs": found, **{key: over(key) for key in keys}}


def draw(results: dict[str, Any], data: Data, passes: int) -> None:
    """The curves of the first seed, whose data are given, as a picture for the README."""
    from matplotlib.figure import Figure

    online = results["online"]["runs"][0]
    for part in (0.25, 0.5):  # in-batch training leaves no checkpoint on its way: shorter runs
        found = run(RECIPES["online"], data, round(passes * part), online["seed"], "eval")
        online["curve"].insert(-1, (found["passes"], {k: found[k] for k in ("map_at_r", "recall_at_1")}))
    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name in results:
        curve = results[name]["runs"][0]["curve"]
        if len(curve) > 1:
            axes.plot([x for x, _ in curve], [y["map_at_r"] for _, y in curve], "o-", label=results[name]["recipe"])
    axes.set(xlabel="image passes", ylabel="MAP@R, unseen characters")
    axes.legend()
    axes.grid(alpha=0.3)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--omniglot", nargs="+", required=True, help="folders of alphabets, or zips of such")
    parser.add_argument("--fashion_mnist", required=True, help="directory of the four IDX files")
    parser.add_argument("--full", action="store_true", help="128,000 passes, all recipes, each seed, on both")
    parser.add_argument("--tune", action="store_true", help="only print the validation MAP@R of settings")
    arguments = parser.parse_args()
    passes = 128_000 if arguments.full else 48_000
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if arguments.tune:
            tune(omniglot(arguments.omniglot, scratch / "tuning", TUNING_SPLIT), passes)
            return 0
        names = [name for name in RECIPES if arguments.full or name not in FULL_ONLY]
        each = {seed: omniglot(arguments.omniglot, scratch / f"split-{n}", n) for seed, n in SPLITS.items()}
        found, rows = table(each, names, passes)
        draw(found, next(iter(each.values())), passes)
        fashion = fashion_mnist(arguments.fashion_mnist, scratch)
        seeds = list(SPLITS) if arguments.full else list(SPLITS)[:1]
        print("Fashion-MNIST, unseen examples", flush=True)
        names = names if arguments.full else ["online", "packs", "control"]
        of_fashion, more = table(dict.fromkeys(seeds, fashion), names, passes)
    rows += [replace(row, what=f"Fashion-MNIST: {row.what}", bound=None) for row in more]
    for row in rows:
        show(row)
    tables = {"Omniglot, unseen characters": found, "Fashion-MNIST, unseen examples": of_fashion}
    return finish("quality", rows, form="full" if arguments.full else "quick", passes=passes, tables=tables)


if __name__ == "__main__":
    sys.exit(main())
