"""Something to look at: report.html of each mined round, suspected-labels.tsv beside it, index.html over rounds.

    python -m pipeline.report --run_dir runs/digits

Pages stand alone: no script, no network, pictures inside. All they say is read from the run directory.
"""

import csv
import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from pipeline import charts, command, findings, records, storage
from pipeline.findings import Sample, Suspect
from pipeline.records import Corpus, InputError
from pipeline.views import View, look_up

DRAWN, CLOSEST = 12, 12  # triplets shown
PAIRS, EXAMPLES = 9, 3  # of confused classes
HEAT_CLASSES = 16
TINT = 60  # percent of colour in the darkest cell: words on it can still be read
SUSPECTS = 24  # shown; the file has all
SUSPECT_COLUMNS = (
    "id", "label", "looks_like", "row", "copy", "neighbours", "own", "other", "d_own", "d_other", "anchors",
)  # fmt: skip
METRICS = {
    "map_at_r": "MAP@R", "r_precision": "R-precision", "mean_distance": "mean distance", "roc_auc": "ROC AUC",
    "val_at_far_1e-3": "VAL at FAR 1e-3", "accuracy_10_fold": "10-fold accuracy", "nmi": "NMI",
}  # fmt: skip
ENDED = {
    "epochs": "ran all its epochs", "min_active": "ended when few of its triplets were active",
    "validation": "ended when validation did not rise",
}  # fmt: skip


# ---- What a run directory holds. ----


@dataclass(frozen=True, kw_only=True)
class Round:
    """What was written of one round; a part is {} while it is not there. evaluations: by split."""

    number: int
    manifest: dict[str, Any]
    stats: dict[str, Any]
    metrics: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]

    @property
    def kinds(self) -> dict[str, int]:
        """Triplets by kind, both scopes together."""
        counts = self.manifest.get("counts", {}).values()
        return {kind: sum(scope.get(kind, 0) for scope in counts) for kind in self.manifest.get("kinds", ())}

    @property
    def served(self) -> float | None:
        """The share of anchor-positive pairs that got a triplet from the whole corpus; in spread packs, from theirs."""
        pairs = self.pairs
        scope = "pack" if self.spread else "corpus"
        return sum(self.manifest["counts"][scope].values()) / pairs if pairs else None

    @property
    def pairs(self) -> int:
        """The anchor-positive pairs of `served`."""
        if not self.manifest:
            return 0
        if not self.spread:
            return int(self.manifest["pairs"]["corpus"])
        return sum(sum(self.manifest[what]["pack"].values()) for what in ("counts", "skipped"))

    @property
    def spread(self) -> bool:
        """Whether packs hold far classes, and no triplets over the corpus."""
        return bool(self.manifest.get("options", {}).get("packs") == "spread")

    @property
    def loss(self) -> float | None:
        return self.metrics["epochs"][-1]["loss"] if self.metrics else None

    @property
    def active(self) -> tuple[float, float] | None:
        """The share of triplets with a loss: before training, and in the last epoch."""
        if not self.metrics:
            return None
        return self.metrics["fresh_active_share"], self.metrics["epochs"][-1]["active_share"]


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; {} if it is not there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}. Remove it, and run again what writes it.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}, expected an object. Remove it, and write it again.")
    return value


def read_round(run_dir: Path, number: int, corpus: Corpus) -> Round:
    directory, path = records.round_dir(run_dir, number), records.manifest_path(run_dir, number)
    manifest = records.read_triplets_manifest(path, corpus) if path.exists() else {}
    evaluations = {split: _read(directory / f"evaluation-{split}.json") for split in records.SPLITS}
    digest = manifest.get("checkpoint_digest")
    return Round(
        number=number, manifest=manifest, stats=_read(directory / "stats.json"),
        metrics=_read(directory / "train" / "metrics.json"),
        # A warm-up may have replaced round 0's checkpoint since.
        evaluations={s: e for s, e in evaluations.items() if e and digest in (None, e.get("checkpoint_digest"))},
    )  # fmt: skip


def round_numbers(run_dir: Path) -> list[int]:
    return sorted(int(name) for name in storage.names(run_dir / "rounds") if name.isdigit())


# ---- How things are written. ----


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}" if 0 < value < 0.1 else f"{value:.0%}"


def _fixed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _seconds(value: float) -> str:
    minutes, hours = value / 60, value / 3600
    return f"{value:.1f} s" if value < 90 else f"{minutes:.1f} min" if minutes < 90 else f"{hours:.1f} h"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _metric(name: str) -> str:
    if name.startswith("recall_at_"):
        return f"R@{name.removeprefix('recall_at_')}"
    return METRICS.get(name, _words(name))


def quality(found: Iterable[tuple[str, str, dict[str, Any]]]) -> dict[str, Any]:
    """Evaluations as a table, whatever numbers they hold; NAME_std stands with NAME. found: (checkpoint, split, it)."""
    listed = [entry for entry in found if entry[2]]
    names = [n for _, _, e in listed for n, v in e.items() if isinstance(v, int | float) and not isinstance(v, bool)]
    columns = [name for name in dict.fromkeys(names) if name.removesuffix("_std") not in set(names) - {name}]

    def shown(evaluation: dict[str, Any], name: str) -> str:
        value, std = evaluation.get(name), evaluation.get(f"{name}_std")
        if not isinstance(value, int | float):
            return "–"
        return (f"{value:,}" if isinstance(value, int) else f"{value:.3f}") + ("" if std is None else f" ± {std:.3f}")

    rows = [
        {"checkpoint": checkpoint, "split": split, "cells": [shown(evaluation, name) for name in columns]}
        for checkpoint, split, evaluation in listed
    ]
    return {"names": [_metric(name) for name in columns], "rows": rows}


def about_corpus(corpus: Corpus) -> str:
    name, spec = next(iter(corpus.features.items()))
    train = corpus.split("train")
    size = " × ".join("any" if n is None else str(n) for n in spec.get("shape") or ())
    return f"{train.rows:,} rows of {len(train.labels):,} classes to train on; {name}{' ' if size else ''}{size}"


def versions(manifest: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["breakable"] = breakable
    return environment


def breakable(name: str) -> Markup:
    """A name that may be broken after / _ . and -, in markup."""
    return Markup("<wbr>").join(re.findall(r"[^/_.-]*[/_.-]|[^/_.-]+", name))


def write_page(path: Path, template: str, **values: Any) -> None:
    html = _templates().get_template(template).render(values)
    storage.write_atomically(path, lambda temporary: temporary.write_text(html, encoding="utf-8"))


# ---- A round's page. ----


def write_round(run_dir: Path, number: int, corpus: Corpus, packs: int | None = None) -> int:
    """Writes a mined round's report.html and suspected-labels.tsv.

    packs: to read at most; None: what keeps it quick. Returns the number of suspected labels.
    """
    here, mined = read_round(run_dir, number, corpus), mined_rounds(run_dir)
    manifest, directory = here.manifest, records.round_dir(run_dir, number)
    if not manifest:
        known = f"mined are rounds {', '.join(map(str, mined))}" if mined else "no round is mined"
        raise InputError(
            f"{records.manifest_path(run_dir, number)} is missing: round {number} is not mined, {known}. Mine it: "
            f"python -m pipeline.mine --run_dir {run_dir}"
        )
    split, labels = corpus.split("train"), corpus.split("train").labels
    most = findings.packs_to_read(manifest) if packs is None else min(packs, manifest["packs"])
    sample = findings.read_sample(directory / "triplets", manifest, most)
    if not len(sample.anchor):
        raise InputError(f"the {sample.packs:,} packs that were read hold no triplet. Read more of them: --packs N.")
    embeddings = records.embeddings_dir(run_dir, number, corpus.fingerprint, manifest["checkpoint_digest"])
    # Of what is confused and mislabelled.
    told_by = (findings.nearest_others(split, embeddings, seed=number) if here.spread else None) or sample
    classes, classes_told = (
        np.stack([split.class_of(of.anchor), split.class_of(of.negative)], axis=1) for of in (sample, told_by)
    )
    suspects, checked = findings.suspects(told_by, split, embeddings)
    if corpus.manifest["splits"]["train"]["label_conflicts"]:
        suspects = findings.with_conflicts(suspects, split)
    write_suspects(directory / "suspected-labels.tsv", suspects, corpus)
    galleries = {
        "Drawn at random": findings.drawn(sample, DRAWN, seed=number),
        "The smallest gaps, one for each pair of classes": findings.closest(sample, classes, CLOSEST),
    }
    pairs = findings.confusions(told_by, classes_told, PAIRS, EXAMPLES)
    shown = np.concatenate([*galleries.values()])
    examples = np.concatenate([np.empty(0, np.int64), *(np.array(p.examples, np.int64) for p in pairs)])
    rows = [getattr(sample, side)[shown] for side in ("anchor", "positive", "negative")]
    rows += [told_by.anchor[examples], told_by.negative[examples]]
    rows += [np.array([s.row, s.row if s.nearest is None else s.nearest]) for s in suspects[:SUSPECTS]]
    views = look_up(corpus, np.concatenate(rows))
    after = read_round(run_dir, number + 1, corpus).evaluations
    place = mined.index(number)
    write_page(
        directory / "report.html", "round.html",
        number=number, run=str(run_dir), corpus=about_corpus(corpus), versions=versions(manifest),
        before=mined[place - 1] if place else None, after=mined[place + 1] if place + 1 < len(mined) else None,
        figures=round_figures(here, after, len(suspects)),
        galleries=[
            {"name": name, "triplets": [_triplet(sample, t, views, manifest) for t in where.tolist()]}
            for name, where in galleries.items()
        ],
        scale=float(np.maximum(sample.d_ap + manifest["margin"], sample.d_an)[shown].max()),
        read=_of_packs(sample, manifest), histograms=histograms(sample, manifest),
        heat=heat_map(classes_told, labels), pairs=[_pair(p, told_by, views, labels) for p in pairs],
        counted="triplets" if told_by is sample else "near rows",
        told=about_confused(here.spread, told_by is sample, told_by.rows, split.rows),
        kind=next(iter(views.values())).kind,
        suspects={
            "about": about_suspects(told_by.rows if told_by is not sample else len(sample.ids), split.rows, checked),
            "all": len(suspects),
            "rows": [_suspect(s, views, labels) for s in suspects[:SUSPECTS]],
        },
        trained=training(here.metrics, number), counts=count_tables(manifest), times=times(here),
        quality=quality(
            (f"{role} training (round {n}’s)", split_name, evaluation)
            for n, role, found in ((number, "before", here.evaluations), (number + 1, "after", after))
            for split_name, evaluation in found.items()
        ),
        settings=settings(here),
    )  # fmt: skip
    return len(suspects)


def mined_rounds(run_dir: Path) -> list[int]:
    return [n for n in round_numbers(run_dir) if records.manifest_path(run_dir, n).exists()]


def write_suspects(path: Path, suspects: list[Suspect], corpus: Corpus) -> None:
    """Suspects as tab-separated values with a header; fields that hold a tab or a line's end are quoted."""
    rows = np.array([s.row for s in suspects], np.int64)
    ids = [records.parse_example(record)["id"][0].decode() for record in corpus.split("train").read(rows)]
    labels = corpus.split("train").labels

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, dialect="excel-tab", lineterminator="\n")
            table.writerow(SUSPECT_COLUMNS)
            for id, s in zip(ids, suspects, strict=True):
                numbers = [s.neighbours, s.own, s.other, f"{s.d_own:.4f}", f"{s.d_other:.4f}"]
                if not s.neighbours:
                    numbers = [""] * len(numbers)
                table.writerow([id, labels[s.label], labels[s.looks_like], s.row, int(s.copy), *numbers, s.anchors])

    storage.write_atomically(path, write)


def _of_packs(sample: Sample, manifest: dict[str, Any]) -> str:
    packs = f"{sample.packs:,} of {manifest['packs']:,} packs" if sample.packs < manifest["packs"] else "all packs"
    return f"{len(sample.anchor):,} triplets of {packs}"


def round_figures(here: Round, after: dict[str, dict[str, Any]], suspects: int) -> list[dict[str, str]]:
    """The numbers at the top of a round's page: name, value, note."""
    manifest, counts = here.manifest, here.manifest["counts"]
    by_scope = {scope: sum(kinds.values()) for scope, kinds in counts.items()}
    figures = [
        {
            "name": "Triplets", "value": f"{manifest['triplets']:,}",
            "note": f"{by_scope['corpus']:,} over the whole corpus, {by_scope['pack']:,} inside packs",
        },
        {
            "name": "Pairs with a negative", "value": _share(here.served),
            "note": f"of {here.pairs:,} anchor-positive pairs",
        },
    ]  # fmt: skip
    if here.active:
        figures.append(
            {"name": "Still active", "value": _share(here.active[1]),
             "note": f"of the triplets in the last epoch; {_share(here.active[0])} before training"}
        )  # fmt: skip
    for split in records.SPLITS:
        old, new = (found.get(split, {}).get("map_at_r") for found in (here.evaluations, after))
        if new is not None:
            note = "after training" + ("" if old is None else f"; {_fixed(old)} before")
            figures.append({"name": f"MAP@R, {split}", "value": _fixed(new), "note": note})
    if here.stats:
        trained = f"training {_seconds(here.metrics['seconds'])}" if here.metrics else "not trained yet"
        figures.append({"name": "Mining", "value": _seconds(here.stats["mining_seconds"]), "note": trained})
    figures.append({"name": "Suspected labels", "value": f"{suspects:,}", "note": "rows to look at"})
    return figures


def _triplet(sample: Sample, t: int, views: dict[int, View], manifest: dict[str, Any]) -> dict[str, Any]:
    kind = int(sample.kind[t])
    return {
        **{side: views[int(getattr(sample, side)[t])] for side in ("anchor", "positive", "negative")},
        "d_ap": float(sample.d_ap[t]), "d_an": float(sample.d_an[t]), "margin": manifest["margin"],
        "kind": kind, "kind_name": manifest["kinds"][kind],
    }  # fmt: skip


def histograms(sample: Sample, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    margin = float(manifest["margin"])
    there = {name: sample.kind == k for k, name in enumerate(manifest["kinds"]) if (sample.kind == k).any()}
    of = {
        "anchor to positive, d_ap": (sample.d_ap, {}),
        "anchor to negative, d_an": (sample.d_an, {}),
        "gap, d_an − d_ap": (sample.gap, {"margin": margin} | ({"": 0.0} if "hard" in there else {})),
    }
    drawn = []
    for title, (values, marks) in of.items():
        low, middle, high = np.percentile(values, [5, 50, 95])
        note = f"median {middle:.3f}, nine tenths from {low:.3f} to {high:.3f}"
        about = f"histogram of the {title}: {note}"
        chart = charts.histogram({name: values[where] for name, where in there.items()}, about, marks)
        drawn.append({"title": title[0].upper() + title[1:], "note": note, "chart": chart})
    return drawn


def heat_map(classes: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """Of each class' triplets the share whose negative is of each other class; tints go up to the largest share."""
    listed, matrix = findings.confusion_matrix(classes, HEAT_CLASSES)
    anchors = np.bincount(classes[:, 0], minlength=len(labels))[listed]
    share = matrix / np.maximum(anchors, 1)[:, None]
    most = max(float(share.max(initial=0)), 1e-9)
    rows = [
        [
            {"count": f"{n:,}", "tint": round(TINT * float(s) / most), "text": f"{100 * s:.0f}" if s >= 0.005 else ""}
            for n, s in zip(counts, shares, strict=True)
        ]
        for counts, shares in zip(matrix.tolist(), share.tolist(), strict=True)
    ]
    names = [labels[c] for c in listed]
    short = max(map(len, names)) <= 3  # columns as wide as they are have room for them
    return {"classes": names, "rows": rows, "of": len(labels), "numbers": [] if short else range(1, len(names) + 1)}


def _pair(pair: findings.Confusion, sample: Sample, views: dict[int, View], labels: list[str]) -> dict[str, Any]:
    return {
        "a": labels[pair.a], "b": labels[pair.b], "triplets": f"{pair.triplets:,}", "share": _share(pair.share),
        "examples": [
            {
                "d_an": _fixed(float(sample.d_an[t])),
                "views": [views[int(row)] for row in sorted((sample.anchor[t], sample.negative[t]))],  # a's first
            }
            for t in pair.examples
        ],
    }  # fmt: skip


def about_confused(spread: bool, by_packs: bool, looked_at: int, rows: int) -> str:
    """What the classes' tables count."""
    if not spread:
        return "Classes that keep meeting as anchor and negative."
    if by_packs:
        return (
            "Classes that meet as anchor and negative, though packs keep near ones apart; without embeddings of the "
            "whole train split this says little."
        )
    seen = f"{looked_at:,} of the {rows:,}" if looked_at < rows else f"all {rows:,}"
    return (
        f"This round’s packs keep near classes apart, so what counts here is not their triplets: it is {seen} rows as "
        f"anchors, each with the {findings.NEAR} nearest rows of other classes."
    )


def about_suspects(looked_at: int, rows: int, checked: bool) -> str:
    seen = f"{looked_at:,} of the {rows:,} rows" if looked_at < rows else f"all {rows:,} rows"
    if not checked:
        return (
            f"Rows that are the negative of the most anchors of one class, out of {seen}. This round has no embeddings "
            f"of the whole train split, so their neighbours were not looked at."
        )
    return (
        f"Rows that are the negative of many anchors and lie among another class, out of {seen}. First come those that "
        f"lie nearest to it and farthest from their own. Wrong labels are among them, and examples that are only odd: "
        f"look before you act."
    )


def _suspect(suspect: Suspect, views: dict[int, View], labels: list[str]) -> dict[str, Any]:
    view, nearest = views[suspect.row], views[suspect.nearest] if suspect.nearest is not None else None
    cells = ["", "", "", f"{suspect.anchors:,}" if suspect.anchors else ""]
    if suspect.neighbours:
        cells[:3] = f"{suspect.other} of {suspect.neighbours}", _fixed(suspect.d_other), _fixed(suspect.d_own)
    return {
        "view": view,
        "conflict": suspect.copy,
        "looks_like": labels[suspect.looks_like],
        "nearest": nearest,
        "cells": cells,
    }


def training(metrics: dict[str, Any], number: int) -> dict[str, Any]:
    """What is said of the training that ended round `number`; {} if there was none."""
    if not metrics:
        return {}
    mined = "" if metrics["mined_round"] == number else f" on the triplets of round {metrics['mined_round']}"
    about = (
        f"{metrics['steps']:,} steps{mined}, {metrics['image_passes']:,} rows through the network, learning rate "
        f"{metrics['learning_rate']:g}, loss {metrics['loss']}, on {metrics['device']}. It "
        f"{ENDED.get(metrics['stopped_by'], metrics['stopped_by'])}."
    )
    epochs = [
        [
            _fixed(epoch["loss"], 4), _share(epoch["active_share"]), _fixed(epoch["d_ap"]), _fixed(epoch["d_an"]),
            f"{epoch['triplets']:,}", _fixed(epoch.get("validation_map_at_r")),
        ]
        for epoch in metrics["epochs"]
    ]  # fmt: skip
    return {"about": about, "epochs": epochs}


def count_tables(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What became of the pairs that were tried, over the whole corpus and inside packs."""
    tables = []
    scopes = [
        ("corpus", "Over the whole corpus", "anchor-positive pairs, each against every row that takes part"),
        ("pack", "Inside the packs", "further pairs of a label in a pack, each against the rows of the pack"),
    ]
    if manifest["options"].get("packs") == "spread":
        scopes = [("pack", "Inside the packs", "pairs of a label in a pack, each against the rows of the pack")]
    rows_skipped = ("anchors_without_positive", "rows_in_packs_of_one_class")  # the others count pairs
    alone, one_class = (manifest["skipped"]["corpus"].get(reason, 0) for reason in rows_skipped)
    for number, (scope, name, about) in enumerate(scopes):
        counts, skipped = manifest["counts"][scope], dict(manifest["skipped"][scope])
        for reason in rows_skipped:
            skipped.pop(reason, None)
        total = sum(counts.values()) + sum(skipped.values())
        outcomes = [(kind, n, False) for kind, n in counts.items()] + [(_words(r), n, True) for r, n in skipped.items()]
        rows = [
            {
                "name": outcome,
                "count": f"{n:,}",
                "share": _share(n / total) if total else "–",
                "skipped": is_skip,
                "width": round(100 * n / total, 2) if total else 0,
            }
            for outcome, n, is_skip in outcomes
            if n or is_skip
        ]
        extra = {
            "anchors without a positive": 0 if number else alone,
            "rows whose pack would have had one class": 0 if number else one_class,
            "pairs where a guard left out a row": manifest["guarded"][scope],
            "pairs that took another kind than they drew": manifest["fallback"] if scope == "corpus" else 0,
        }
        rows += [
            {"name": outcome, "count": f"{n:,}", "share": "", "skipped": True, "width": None}
            for outcome, n in extra.items() if n
        ]  # fmt: skip
        tables.append({"name": name, "about": f"{total:,} {about}", "rows": rows})
    return tables


def times(here: Round) -> list[dict[str, Any]]:
    """Seconds per stage, mining's own stages summed over its workers."""
    listed = []
    if here.stats:
        listed.append(("mining, from start to end", here.stats["mining_seconds"]))
        listed += [(f"… {_words(s)}, summed over workers", v) for s, v in here.stats.get("worker_seconds", {}).items()]
    if here.metrics:
        listed.append(("training", here.metrics["seconds"]))
    most = max([seconds for _, seconds in listed], default=0) or 1
    return [{"name": name, "seconds": f"{v:,.2f}", "width": round(100 * v / most, 2)} for name, v in listed]


def settings(here: Round) -> list[tuple[str, str]]:
    """(name, value) of what shaped the round."""

    def shown(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {share:g}" for name, share in value.items())
        return "all" if value is None else str(value)

    manifest = here.manifest
    options = {"negatives": manifest["options"]["shares"], **manifest["options"]}
    listed = [(_words(name), shown(value)) for name, value in options.items() if name != "shares"]
    listed += list(manifest["definitions"].items())
    listed.append(("metric", manifest["metric"]))
    if here.metrics:
        of_training = ("batch_rows", "learning_rate", "loss", "min_active", "seed", "mixed_precision", "jit")
        listed += [(f"training: {_words(n)}", str(here.metrics[n])) for n in of_training if n in here.metrics]
    listed += [
        (name, str(manifest[key])[:16])
        for name, key in (
            ("checkpoint", "checkpoint_digest"), ("corpus", "corpus_fingerprint"), ("triplets", "triplet_digest"),
        )
    ]  # fmt: skip
    if "finished" in here.stats:
        listed.append(("mined", here.stats["finished"]))
    return listed


# ---- The page over rounds. ----


def write_index(run_dir: Path, corpus: Corpus) -> Path:
    """Writes index.html over all rounds. Returns its path."""
    rounds = [read_round(run_dir, number, corpus) for number in round_numbers(run_dir)]
    best = _read(run_dir / "best" / "best.json").get("round")
    after = {r.number - 1: r.evaluations for r in rounds}
    kinds = list(dict.fromkeys(kind for r in rounds for kind, n in r.kinds.items() if n))
    rows = []
    for r in rounds:
        if not (r.manifest or r.metrics):
            continue
        quality_after = after.get(r.number, {}).get("validation", {})
        report = records.round_dir(run_dir, r.number) / "report.html"
        mined = r.metrics.get("mined_round", r.number)
        rows.append({
            "number": r.number, "best": best == r.number + 1,
            "note": "" if mined == r.number else f"on round {mined}’s triplets",
            "report": f"rounds/{r.number:04d}/report.html" if report.exists() else "",
            "cells": [
                f"{r.manifest['triplets']:,}" if r.manifest else "–",
                *(f"{r.kinds[kind]:,}" if r.manifest else "–" for kind in kinds),
                _share(r.served),
                f"{_share(r.active[0])} → {_share(r.active[1])}" if r.active else "–",
                _fixed(r.loss, 4), _fixed(quality_after.get("recall_at_1")), _fixed(quality_after.get("map_at_r")),
                _fixed(r.stats.get("mining_seconds"), 1), _fixed(r.metrics.get("seconds"), 1),
            ],
        })  # fmt: skip
    newest = max((r.manifest for r in rounds if r.manifest), key=lambda m: m["round"], default={})
    unseen = "unseen classes" if corpus.manifest["split_rule"]["by"] == "class" else "unseen examples"
    path = run_dir / "index.html"
    write_page(
        path, "index.html",
        run=str(run_dir), name=run_dir.name, corpus=about_corpus(corpus), figures=index_figures(rounds, best),
        charts=index_charts(rounds), kinds=kinds, rows=rows, facts=corpus_facts(corpus),
        quality=quality((f"round {r.number}’s", s, e) for r in rounds for s, e in r.evaluations.items()),
        unseen=unseen, versions=versions(newest),
    )  # fmt: skip
    return path


def index_figures(rounds: list[Round], best: int | None) -> list[dict[str, str]]:
    trained, mined = [r for r in rounds if r.metrics], [r for r in rounds if r.manifest]
    figures = [{"name": "Rounds", "value": f"{len(trained):,}", "note": f"trained; {len(mined):,} mined"}]
    validated = map_at_r(rounds, "validation")
    if validated:
        top = best if best in validated else max(validated, key=lambda n: (validated[n], -n))
        figures.append(
            {"name": "Best MAP@R, validation", "value": _fixed(validated[top]), "note": f"round {top}’s checkpoint"}
        )
    if mined:
        total = sum(r.manifest["triplets"] for r in mined)
        figures.append({"name": "Triplets mined", "value": f"{total:,}", "note": "over all rounds"})
    if trained:
        passes = sum(r.metrics["image_passes"] for r in trained)
        steps = f"in {trained[-1].metrics['total_steps']:,} steps"
        figures.append({"name": "Rows through the network", "value": f"{passes:,}", "note": steps})
    mining = sum(r.stats.get("mining_seconds", 0.0) for r in rounds)
    training_ = sum(r.metrics["seconds"] for r in trained)
    if mining + training_:
        note = f"mining {_seconds(mining)}, training {_seconds(training_)}"
        figures.append({"name": "Time", "value": _seconds(mining + training_), "note": note})
    return figures


def map_at_r(rounds: list[Round], split: str) -> dict[int, float]:
    """By round, of its checkpoint."""
    found = {r.number: r.evaluations.get(split, {}).get("map_at_r") for r in rounds}
    return {number: value for number, value in found.items() if value is not None}


def index_charts(rounds: list[Round]) -> list[dict[str, Any]]:
    mined, trained = [r for r in rounds if r.manifest], [r for r in rounds if r.metrics]
    quality = {split: map_at_r(rounds, split) for split in records.SPLITS}
    active = {
        name: {r.number: r.active[i] for r in rounds if r.active}
        for i, name in enumerate(("before training", "in the last epoch"))
    }
    kinds = {kind: {r.number: float(r.kinds[kind]) for r in mined} for kind in (mined[-1].kinds if mined else ())}
    seconds = {
        "mining": {r.number: r.stats["mining_seconds"] for r in rounds if r.stats},
        "training": {r.number: r.metrics["seconds"] for r in trained},
    }
    drawn = (
        ("MAP@R", "of each round’s checkpoint, on held-out rows", charts.lines(quality, "MAP@R over rounds", ".3f")),
        ("Active share", "of the triplets trained on", charts.lines(active, "active share over rounds", ".0%")),
        ("Triplets", "of each round, by kind", charts.columns(kinds, "triplets over rounds", "")),
        ("Seconds", "of each round", charts.columns(seconds, "seconds over rounds", " s")),
    )
    return [{"title": title, "note": note, "chart": chart} for title, note, chart in drawn if chart]


def corpus_facts(corpus: Corpus) -> list[tuple[str, str]]:
    manifest = corpus.manifest
    listed = [("source", str(manifest["source"])), ("split by", manifest["split_rule"]["by"])]
    for name, spec in corpus.features.items():
        size = " × ".join("any" if n is None else str(n) for n in spec.get("shape") or ())
        listed.append((f"feature {name}", f"{spec['kind']} {size}".strip()))
    for name, entry in manifest["splits"].items():
        listed.append((name, f"{entry['rows']:,} rows, {len(entry['labels']):,} classes"))
        if entry["copies"]:
            listed.append((f"{name}: copies", f"{entry['copies']:,}, {entry['label_conflicts']:,} under another label"))
    listed += [("rejected", f"{manifest['rejected']:,}"), ("fingerprint", corpus.fingerprint[:16])]
    return listed


# ---- The command. ----


def main(argv: list[str]) -> int:
    parser = command.Parser("pipeline.report", "--run_dir DIR [options]", __doc__.splitlines()[0])
    parser.add_argument("--run_dir", type=storage.location, required=True, help="with the corpus and the rounds")
    parser.add_argument("--round", type=int, nargs="+", help="whose report (every mined round's)")
    parser.add_argument("--packs", type=int, help="read at most so many packs of a round (what takes about a second)")
    command.add_options(parser)
    arguments = parser.parse_args(argv)
    command.begin(arguments)
    if arguments.packs is not None and arguments.packs < 1:
        raise InputError(f"--packs must be at least 1; found {arguments.packs}")
    corpus = records.open_corpus(arguments.run_dir)
    numbers = arguments.round or mined_rounds(arguments.run_dir)
    suspected = {number: write_round(arguments.run_dir, number, corpus, arguments.packs) for number in numbers}
    path = write_index(arguments.run_dir, corpus)
    for number, count in suspected.items():
        where = records.round_dir(arguments.run_dir, number)
        print(f"round {number}: {where / 'report.html'}, {count:,} suspected labels")
    print(f"all rounds: {path}")
    command.note(index=str(path), suspected_labels=suspected)
    return 0


if __name__ == "__main__":
    command.run(main)
