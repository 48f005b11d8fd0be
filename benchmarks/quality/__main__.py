"""What mining buys: held-out retrieval of every fair opponent and of ours, at equal total cost.

    make bench-quality OMNIGLOT="images_background_small1.zip images_background_small2.zip" BANKING77=DIR

Runs the arms on one split of Omniglot and of city names again, compares them with the stored cells, and makes the table
and the picture from these. With ARGS=--full it runs what is not stored yet: many hours, and it can be stopped and
started again at any time.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.quality import answers, page, tuning
from benchmarks.quality.arms import ARMS, CONTROL_OF, CONTROLS, OPPONENTS, OURS, tried
from benchmarks.quality.cells import Cell, Found, keep, missing, run_all, stored
from benchmarks.quality.corpora import CORPORA, Sources, corpus
from benchmarks.table import Row, finish, show

SPLITS = (3, 4, 5)  # of the classes: nothing was chosen with these
BUDGETS = (1.0, 3.0)  # passes over the train split, mining's counted
QUICK = ("omniglot", "cities")
FOLDER = Path("runs/quality")


def cells_of(name: str, arms: Sequence[str], budgets: Sequence[float], splits: Sequence[int]) -> list[Cell]:
    """Those of the arms that are tuned."""
    kept = stored(name)
    warmup, _ = tuning.settle(name, "semi-hard", kept)
    found = []
    for arm in arms:
        settings, _ = tuning.settle(name, arm, kept)
        if settings is not None:
            first = None if arm in OPPONENTS else warmup
            found += [
                Cell(corpus=name, arm=arm, budget=budget, split=split, settings=settings, warmup=first)
                for budget in budgets for split in splits
            ]  # fmt: skip
    return found


def fill(
    names: Sequence[str], arms: Sequence[str], budgets: Sequence[float], sources: Sources, workers: int
) -> None:
    """Runs all that is not stored yet: tuning first, then what is reported, the smaller budget first."""
    while wanted := [cell for name in names for arm in arms for cell in tuning.settle(name, arm, stored(name))[1]]:
        work(list({cell.key(): cell for cell in wanted}.values()), sources, workers)
    for budget in budgets:
        work(missing(cell for name in names for cell in cells_of(name, arms, [budget], SPLITS)), sources, workers)


def work(cells: Sequence[Cell], sources: Sources, workers: int) -> None:
    where = [corpus(cell.corpus, sources, FOLDER, cell.split, cell.share) for cell in cells]
    for found in run_all(list(zip(cells, where, strict=True)), workers):
        say(found)
        keep(found)


def say(found: Found) -> None:
    cell = found.cell
    settings = ", ".join(f"{name} {value}" for name, value in cell.settings.items())
    print(f"{cell.corpus:<14}{cell.arm:<13}budget {cell.budget:g}  split {cell.split}  MAP@R {found.map_at_r:.3f}  "
          f"R@1 {found.recall_at_1:.3f}  {found.seconds:5.0f} s  {settings}", flush=True)  # fmt: skip


def again(sources: Sources, workers: int) -> list[Row]:
    """One split of the quick corpora, against what is stored."""
    rows = []
    for name in QUICK:
        cells = cells_of(name, list(OPPONENTS | OURS), BUDGETS[:1], SPLITS[:1])
        kept = stored(name)
        of_split = {arm: page.deviation(kept, arm, BUDGETS[0]) for arm in ARMS}
        for found in run_all([(cell, corpus(name, sources, FOLDER, cell.split)) for cell in cells], workers):
            say(found)
            before = kept[found.cell.key()].map_at_r if found.cell.key() in kept else float("nan")
            off = abs(found.map_at_r - before) / of_split[found.cell.arm]
            what = f"{name}, {ARMS[found.cell.arm].name}: standard deviations off the stored"
            note = f"MAP@R {found.map_at_r:.3f}, stored {before:.3f}"
            rows.append(Row(what=what, value=off, bound=2.0, note=note))
            show(rows[-1])
    return rows


def claims(kept: Mapping[str, page.Stored]) -> list[Row]:
    """What mining buys, by the stored cells; NaN, which is short, where they are not there."""
    rows = []

    def ask(what: str, name: str, arm: str, other: str | None, budget: float, bound: float) -> None:
        gains = page.gain(kept[name], arm, other, budget) if other else []
        note = ", ".join(f"{gain:+.3f}" for gain in gains) or "not stored"
        value = statistics.mean(gains) if gains else float("nan")
        rows.append(Row(what=f"{name}: {what}", value=value, bound=bound, at_least=True, note=note))

    small, large = BUDGETS
    for name, bound in (("cities", 0.03), ("kanji", 0.03), ("omniglot", 0.01), ("banking77", 0.02)):
        best = page.best_opponent(kept[name], small)
        ask("packs minus the best opponent, one pass", name, "packs", best, small, bound)
    passes = {small: "one pass", large: "three passes"}
    for name, budget in (("omniglot", large), ("cities", small), ("cities", large), ("kanji", small)):
        ask(f"mined packs minus each row once, at random, {passes[budget]}", name, "packs", "packs-even", budget, 0.02)
    for name in ("omniglot", "cities", "kanji", "banking77"):
        for budget in BUDGETS:
            what = f"plain triplets on packs minus in-batch, {passes[budget]}"
            ask(what, name, "plain", "semi-hard", budget, 0.0)
    for name in ("omniglot", "kanji"):
        what = "triplets picked in mined packs minus in-batch, one pass, mining not counted"
        ask(what, name, "picked", "semi-hard", small, 0.0)
    found = answers.cases(kept, BUDGETS)
    note = ", ".join(f"{one.corpus} {one.budget:g}: {one.gain:+.3f}" for one in found)
    what = "mine's answer, balanced accuracy, its bound fitted without the corpus"
    return [*rows, Row(what=what, value=answers.judged(found), bound=0.75, at_least=True, note=note)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--omniglot", nargs="+", required=True, help="folders of alphabets, or zips of such")
    parser.add_argument("--fashion_mnist", type=Path, required=True, help="directory of the four IDX files")
    parser.add_argument("--banking77", type=Path, required=True, help="folder of train.csv and test.csv")
    parser.add_argument("--fonts", type=Path, required=True, help="folder of Debian's fonts: see make runs/fonts")
    parser.add_argument("--full", action="store_true", help="run all that is not stored yet")
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA), help="of --full")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="of --full")
    parser.add_argument("--budgets", nargs="+", type=float, choices=BUDGETS, default=list(BUDGETS), help="of --full")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="cells at a time")
    arguments = parser.parse_args()
    sources = Sources(
        omniglot=tuple(arguments.omniglot), fashion_mnist=arguments.fashion_mnist, banking77=arguments.banking77,
        fonts=arguments.fonts,
    )  # fmt: skip
    if arguments.full:
        fill(arguments.corpora, arguments.arms, arguments.budgets, sources, arguments.workers)
        rows = []
    else:
        rows = again(sources, arguments.workers)
    arms = list(OPPONENTS | OURS)
    every = [cell for name in CORPORA for cell in cells_of(name, arms, BUDGETS, SPLITS)]
    there = len(every) - len(missing(every))
    wanted = len(CORPORA) * len(arms) * len(SPLITS) * len(BUDGETS)
    ours = [*OURS, *(CONTROLS.keys() - CONTROL_OF.keys())]
    smallest, largest = (f(tried(ARMS[a].grid) for a in group) for f, group in ((min, OPPONENTS), (max, ours)))
    summary = [
        Row(what="cells that are stored", value=there, bound=wanted, at_least=True),
        Row(what="settings tried, least of an opponent minus most of ours", value=smallest - largest, bound=0,
            at_least=True, note=f"{smallest} and {largest}, with each learning rate"),
    ]  # fmt: skip
    kept = {name: stored(name) for name in CORPORA}
    summary += claims(kept)
    for row in summary:
        show(row)
    page.write(kept, BUDGETS)
    page.draw(kept, BUDGETS)
    return finish("quality", rows + summary, form="full" if arguments.full else "quick")


if __name__ == "__main__":
    sys.exit(main())
