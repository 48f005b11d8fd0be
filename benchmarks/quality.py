"""What offline mining brings: held-out retrieval against in-batch mining, at equal numbers of trained images.

    make bench-quality OMNIGLOT="images_background_small1.zip images_background_small2.zip"

Every row is trained by the project's own functions, on Omniglot's characters (those that several folders share count
once), each also turned by 90, 180 and 270 degrees as classes of their own (as in Matching Networks, section 4.1.1,
https://arxiv.org/abs/1606.04080). Characters, with their turns, are held out whole. Each seed draws which, for the
gain differs more between splits of the characters than between seeds. Settings were chosen with other splits and seeds
(`--tune` is the grid of rates and margins). An image pass is an image forwarded and backwarded; warm-up passes count.
"""

import argparse
import io
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks.omniglot import merged
from benchmarks.runs import IN_PROCESS, ingest_arrays, ingest_source
from benchmarks.table import Row, finish, show
from pipeline.corpus.corpus import Corpus, Split
from pipeline.corpus.manifest import SPLITS
from pipeline.embedding.embedder import Embedder
from pipeline.embedding.network import load_network
from pipeline.embedding.store import EmbeddingStore
from pipeline.files import manifests
from pipeline.files.layout import Run
from pipeline.files.manifests import sha256_of_json
from pipeline.mining.job import mine
from pipeline.mining.manifest import open_triplets
from pipeline.packs import spread
from pipeline.packs.packs import PackOptions, Packs
from pipeline.packs.payload import Payload
from pipeline.packs.write import SCOPES, write_packs
from pipeline.triplets.rows import Block, Triplets, to_grid
from pipeline.triplets.rule import KINDS, Rule
from trainer.loop import Schedule, train_newest
from trainer.measures.retrieval import retrieval
from trainer.options import TrainOptions, WarmupOptions
from trainer.recipe import Recipe, read_recipe
from trainer.warming import warm_up

BATCH = 128  # images a step in-batch; with 64 or 32 it ends lower
FORWARD = 1 / 3  # of a training pass: what a forward pass of mining costs
TUNING_SPLIT = 0  # of the characters
SPLIT_OF_SEED = {6: 3, 7: 4, 8: 5}  # of the characters, by the runs' seed: no setting was chosen on these
PICTURE = Path(__file__).parent.parent / "docs" / "quality.png"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """warmup: share of the passes that are in-batch, with the recipe's warm-up.

    rounds: how many, of so many passes in all; None for in-batch only. rows: that one of `anchors` brings into a pack
    at the most: with corpus triplets its own class' and its negative's, or three. one_decay: the learning rate falls
    over all rounds, and not over each. control: the rounds' packs are replaced by as many that no embedding has a part
    in: `random`, of randomly drawn classes; or `even`, every row once in random company.
    """

    name: str
    recipe: Recipe
    warmup: float = 1.0
    rounds: Callable[[int], int] | None = None
    rows: int = 8
    one_decay: bool = False
    control: str = ""

    def anchors(self, passes: int) -> int:
        """Of a round."""
        assert self.rounds
        return round((1 - self.warmup) * passes / self.rounds(passes) / self.rows)


# The best of what was tried, with splits 0 to 2 and seeds 0 and 1.
IN_BATCH = WarmupOptions(margin=1.0, learning_rate=0.003)
ONLINE = Contender(name="in-batch, best margin", recipe=Recipe(warmup=IN_BATCH))
OFFLINE = Contender(
    name="packs with memory", recipe=replace(read_recipe("best"), warmup=IN_BATCH), warmup=0.24,
    rounds=lambda passes: passes // 16_000, rows=1, one_decay=True,
)  # fmt: skip
PLAIN = Contender(
    name="packs, the triplet loss alone", recipe=Recipe(warmup=IN_BATCH, train=TrainOptions(learning_rate=0.003)),
    warmup=0.5, rounds=lambda passes: passes // 16_000,
)  # fmt: skip
FULL_ONLY = ("plain-control", "lone")
CONTENDERS = {
    "online": ONLINE,
    "packs": OFFLINE,
    "control": replace(OFFLINE, name="packs of random classes with memory", control="random"),
    "even": replace(OFFLINE, name="packs of each row once, at random, with memory", control="even"),
    "plain": PLAIN,
    "plain-control": replace(PLAIN, name="packs of random classes, the triplet loss alone", control="random"),
    "lone": replace(
        PLAIN, name="lone triplets, the triplet loss alone", rows=3,
        recipe=replace(PLAIN.recipe, packing=PackOptions(pack_rows=3)),
    ),
}  # fmt: skip


# ---- The data. ----


def ingest_turned(upright: Split, run_dir: Path) -> Corpus:
    """A corpus of a split's images, and of their three turns as classes of their own, all in its train split."""
    from PIL import Image

    found = list(upright.examples(np.arange(upright.rows)))
    images = np.stack([np.asarray(Image.open(io.BytesIO(e["image"][0])).convert("L")) for e in found])
    labels = np.array([e["label"][0].decode() for e in found])
    ingest_arrays(
        run_dir, images=np.concatenate([np.rot90(images, turn, axes=(1, 2)) for turn in range(4)]),
        labels=np.concatenate([np.char.add(labels, f"/{90 * turn}") for turn in range(4)]),
    )  # fmt: skip
    return Corpus.open(run_dir)


@dataclass(frozen=True, kw_only=True)
class Data:
    """A run directory with nothing but a corpus, and the rows that are held out: (corpus, split) by name."""

    run_dir: Path
    held_out: dict[str, tuple[Corpus, str]]


def omniglot(sources: list[str], scratch: Path, seed: int) -> Data:
    """seed: of the split of the characters."""
    scratch.mkdir()
    upright, characters = scratch / "upright", merged(sources, scratch / "characters")
    ingest_source(upright, f"images:{characters}", validation_share=0.15, eval_share=0.25, seed=seed)
    turned = {split: ingest_turned(Corpus.open(upright).split(split), scratch / split) for split in SPLITS}
    return Data(run_dir=scratch / "train", held_out={split: (turned[split], "train") for split in SPLITS[1:]})


def fashion_mnist(directory: str, scratch: Path) -> Data:
    run_dir = scratch / "fashion-mnist"
    ingest_source(run_dir, f"fashion_mnist:{directory}")
    return Data(run_dir=run_dir, held_out={split: (Corpus.open(run_dir), split) for split in SPLITS[1:]})


# ---- A run. ----


def evaluated(checkpoint: Path, data: Data, split: str) -> dict[str, float]:
    corpus, name = data.held_out[split]
    of, embedder = corpus.split(name), Embedder(load_network(checkpoint), corpus.feature)
    found = retrieval(embedder.split(of), of.class_of(np.arange(of.rows)))
    return {"map_at_r": found["map_at_r"], "recall_at_1": found["recall_at_1"]}


@contextmanager
def fresh(data: Data) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=data.run_dir.parent) as scratch:
        run_dir = Path(scratch, "run")
        shutil.copytree(data.run_dir / "corpus", run_dir / "corpus")
        yield run_dir


def run(contender: Contender, data: Data, passes: int, seed: int, split: str) -> dict[str, Any]:
    """Trains for about that many image passes. Evaluates each round's checkpoint."""
    started, recipe = time.time(), contender.recipe
    assert recipe.warmup
    with fresh(data) as run_dir:
        steps = max(1, round(contender.warmup * passes / BATCH))
        warm_up(run_dir, replace(recipe.warmup, steps=steps, batch_rows=BATCH, seed=seed))
        done, mined, triplets, curve = steps * BATCH, 0, 0, []
        rounds = contender.rounds(passes) if contender.rounds else 0
        for number in range(rounds):
            keras.backend.clear_session()
            curve.append((done, evaluated(Run(run_dir).round(number).checkpoint, data, split)))
            mining = replace(recipe.mining, seed=seed, anchors=contender.anchors(passes))
            mine(run_dir, mining, recipe.packing, IN_PROCESS)
            if contender.control:
                random_packs(run_dir, number, seed, contender.control == "even")
            schedule = Schedule(first=0, rounds=rounds) if contender.one_decay else None
            trained = train_newest(run_dir, replace(recipe.train, seed=seed), schedule).metrics
            assert trained
            done += trained.image_passes
            triplets += sum(epoch.triplets for epoch in trained.epochs)
            mined += Corpus.open(run_dir).split("train").rows
        end = evaluated(Run(run_dir).round(rounds).checkpoint, data, split)
    keras.backend.clear_session()
    return {
        "recipe": contender.name, "seed": seed, "passes": done, "mined": mined, "triplets": triplets, **end,
        "curve": [*curve, (done, end)], "seconds": time.time() - started,
    }  # fmt: skip


def random_packs(run_dir: Path, number: int, seed: int, even: bool) -> None:
    """Replaces a mined round's packs by packs of about as many rows in all, but random ones, no corpus triplets.

    even: every row once, as `spread` deals them when embeddings say nothing. Else of randomly drawn classes, each with
    as many rows as a pack is filled to, or more where there are too few classes to fill it.
    """
    corpus, round = Corpus.open(run_dir), Run(run_dir).round(number)
    manifest = open_triplets(round, corpus)
    rule, packing = manifest.mining.rule(number, manifest.packing.pack_pick), manifest.packing
    store, rng = EmbeddingStore(round, corpus, manifest.checkpoint_digest), np.random.default_rng([seed, number])
    if even:
        packs = each_row_once(rule, store.split, rng, packing, manifest.rows)
    else:
        packs = random_classes(store.split, rng, packing, manifest.rows)
    payload, shards, counts, cuts = Payload(store.split), [], Counter[str](), len(manifest.shards)
    for n, old in enumerate(manifest.shards):
        some = packs.take(n * len(packs) // cuts, (n + 1) * len(packs) // cuts)
        shard, found = write_packs(round.triplets / old.file, rule, some, False, store, payload)
        shards.append(shard)
        counts.update(found)
    triplets = {scope: {kind: counts[f"{scope}/{kind}"] for kind in KINDS} for scope in SCOPES}
    replaced = replace(
        manifest, triplets=sum(sum(kinds.values()) for kinds in triplets.values()), packs=len(packs),
        rows=len(packs.rows), counts=triplets, shards=shards,
        triplet_digest=sha256_of_json([shard.sha256 for shard in shards]),
    )  # fmt: skip
    manifests.write(round.manifest, replaced)


def random_classes(split: Split, rng: np.random.Generator, packing: PackOptions, rows: int) -> Packs:
    first = split.first_rows
    width = min(len(split.labels), packing.pack_rows // packing.fill)
    fill = packing.pack_rows // width
    packs = round(rows / (fill * width))
    usable = np.flatnonzero(np.diff(first) >= fill)
    classes = [rng.choice(usable, width, replace=False) for _ in range(packs)]
    drawn = [first[c] + rng.choice(first[c + 1] - first[c], fill, replace=False) for c in np.concatenate(classes)]
    return bare_packs(np.concatenate(drawn), np.arange(packs + 1) * fill * width)


def each_row_once(rule: Rule, split: Split, rng: np.random.Generator, packing: PackOptions, rows: int) -> Packs:
    every = np.arange(split.rows)
    block = Block(row=every, embedding=to_grid(rng.standard_normal((len(every), 8)).astype(np.float32)))
    groups = spread.group_rows(rule, block, split.class_of(every), packing.fill)
    place = rng.permutation(len(split.labels))[groups.label]
    dealt, starts = spread.deal(rule, groups, place, packing.pack_rows, packing.fill)
    starts = starts[: np.searchsorted(starts, rows, "right")]
    return bare_packs(dealt[: starts[-1]], starts)


def bare_packs(rows: np.ndarray, starts: np.ndarray) -> Packs:
    """Without corpus triplets."""
    none = np.zeros(len(starts), np.int64)
    return Packs(shard=0, rows=rows, starts=starts, triplets=Triplets.none(), triplet_starts=none)


# ---- The table. ----


def tune(data: Data, passes: int) -> None:
    """Prints MAP@R on the validation characters for learning rates and margins, one seed each."""
    for rate in (0.001, 0.003, 0.01):
        for margin in (0.2, 0.5, 1.0):
            online = replace(ONLINE, recipe=Recipe(warmup=WarmupOptions(learning_rate=rate, margin=margin)))
            recipe = OFFLINE.recipe
            trained, mining = replace(recipe.train, learning_rate=rate), replace(recipe.mining, margin=margin)
            offline = replace(OFFLINE, recipe=replace(recipe, train=trained, mining=mining))
            for name, contender in (("in-batch", online), ("packs", offline)):
                found = run(contender, data, passes, 0, "validation")
                print(f"{name:<10}rate {rate}  margin {margin}  validation MAP@R {found['map_at_r']:.3f}", flush=True)


def table(of_seed: dict[int, Data], names: list[str], passes: int) -> tuple[dict[str, Any], list[Row]]:
    """Every contender for every seed, on its data; the in-batch ones as many passes as the packs of that seed took."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    runs["online-counted"] = []

    def add(name: str, found: dict[str, Any]) -> None:
        runs[name].append(found)
        print(f"  {name:<16}seed {found['seed']}  {found['passes']:>9,} passes  R@1 {found['recall_at_1']:.3f}  "
              f"MAP@R {found['map_at_r']:.3f}  {found['seconds']:4.0f} s", flush=True)  # fmt: skip

    for seed, data in of_seed.items():
        packs_run = run(CONTENDERS["packs"], data, passes, seed, "eval")
        add("packs", packs_run)
        for name in (name for name in names if name != "packs"):
            equal = passes if CONTENDERS[name].rounds else packs_run["passes"]
            add(name, run(CONTENDERS[name], data, equal, seed, "eval"))
        counted = packs_run["passes"] + packs_run["mined"] * FORWARD
        add("online-counted", run(CONTENDERS["online"], data, round(counted), seed, "eval"))

    def minus(one: str, other: str, bound: float | None, what: str = "") -> Row:
        gaps = [a["map_at_r"] - b["map_at_r"] for a, b in zip(runs[one], runs[other], strict=True)]
        each = ", ".join(f"{gap:+.3f}" for gap in gaps)
        name = f"MAP@R, {CONTENDERS[one].name} minus {what or CONTENDERS[other].name}"
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
    """The curves of the first seed, whose data are given, as a picture for docs/benchmarks.md."""
    from matplotlib.figure import Figure

    online = results["online"]["runs"][0]
    for part in (0.25, 0.5):  # in-batch training leaves no checkpoint on its way: shorter runs
        found = run(CONTENDERS["online"], data, round(passes * part), online["seed"], "eval")
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
    parser.add_argument("--full", action="store_true", help="128,000 passes, all contenders, each seed, on both")
    parser.add_argument("--tune", action="store_true", help="only print the validation MAP@R of settings")
    arguments = parser.parse_args()
    passes = 128_000 if arguments.full else 48_000
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if arguments.tune:
            tune(omniglot(arguments.omniglot, scratch / "tuning", TUNING_SPLIT), passes)
            return 0
        names = [name for name in CONTENDERS if arguments.full or name not in FULL_ONLY]
        each = {seed: omniglot(arguments.omniglot, scratch / f"split-{n}", n) for seed, n in SPLIT_OF_SEED.items()}
        found, rows = table(each, names, passes)
        draw(found, next(iter(each.values())), passes)
        fashion = fashion_mnist(arguments.fashion_mnist, scratch)
        seeds = list(SPLIT_OF_SEED) if arguments.full else list(SPLIT_OF_SEED)[:1]
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
