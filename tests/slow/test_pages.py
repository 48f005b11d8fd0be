"""Every block of every page runs, in order, in a folder that looks like a checkout. See tests/fences.py."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from fences import PAGES, ROOT, blocks_of
from PIL import Image

from trainer.models import default_for

pytestmark = pytest.mark.slow

LEFT_OUT = {".git", ".venv", ".venv-peers", ".venv-versions", "runs", "build"}
RUNNING = [page for page in PAGES if any(block.runs for block in blocks_of(page))]
# The run that a page takes to be there: its name, and the fixture it is copied from.
RUNS = {
    "does-it-pay.md": ("kanji", "small"),
    "files.md": ("digits", "small_mined"),
    "scheduling.md": ("shop", "small"),
}

# One process a page: its Python blocks share a namespace, and each bash block is a shell of its own.
READER = """
import json, os, subprocess, sys
from pathlib import Path
blocks, names = json.load(sys.stdin), {"__name__": "__main__"}
for line, kind, code, name in blocks:
    print(f"--- line {line}", flush=True)
    if kind == "file":
        Path(name).write_text(code, encoding="utf-8")
    elif kind == "bash":
        code = subprocess.run(["bash", "-euo", "pipefail", "-c", code], stdin=subprocess.DEVNULL).returncode
        if code:
            sys.exit(f"line {line} ended with exit code {code}")
    else:
        exec(compile(code, f"line {line}", "exec"), names)
"""


def make_checkout(folder: Path) -> None:
    """Links to all that is in ours, and `.venv` as `make setup` leaves it, with the packages of this Python."""
    for path in ROOT.iterdir():
        if path.name not in LEFT_OUT:
            (folder / path.name).symlink_to(path)
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if not path.name.endswith("installed"):
            (folder / ".venv" / path.name).symlink_to(path)
    (folder / ".venv" / "installed").touch()  # newer than the lock file: make has nothing to install


def drawings(folder: Path) -> None:
    """Omniglot's drawings, a folder a character."""
    with zipfile.ZipFile(ROOT / "tests" / "data" / "omniglot.zip") as file:
        file.extractall(folder)


def made_up_weights(path: Path, images: list[Path]) -> None:
    """Seeded ones, with the statistics of images: with those that Keras starts from all embeddings lie together."""
    keras.utils.set_random_seed(0)
    shape = (64, 64, 3)
    base = keras.applications.MobileNetV3Small(input_shape=shape, include_top=False, pooling="avg", weights=None)
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # takes the statistics of one batch as they are
    pixels = [np.asarray(Image.open(image).convert("RGB").resize(shape[:2]), np.float32) for image in images]
    base(np.stack(pixels), training=True)
    base.save_weights(path)


def readers_data(page: str, folder: Path, request: pytest.FixtureRequest) -> None:
    """What a page takes to be there: a reader's own files, or a run of theirs."""
    if page == "README.md":
        drawings(folder / "images_background_small1")
    elif page == "own-model.md":
        drawings(folder / "photos")
        made_up_weights(folder / "mobilenet.weights.h5", sorted((folder / "photos").rglob("*.png"))[:64])
    elif page == "sources.md":
        drawings(folder / "photos")
        with open(folder / "shop.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["number", "photo", "sku", "shot"])
            for number, path in enumerate(sorted((folder / "photos").rglob("*.png"))):
                rows.writerow([number, path.relative_to(folder), path.parent.name, number])
        trained = folder / "runs" / "shop" / "best" / "model.keras"
        trained.parent.mkdir(parents=True)
        default_for("image")((32, 32, 1)).save(trained)
        vectors = np.random.default_rng(0).standard_normal((200, 16))
        np.savez(folder / "vectors.npz", vectors=vectors, labels=np.arange(200) % 20)
    elif page in RUNS:
        name, fixture = RUNS[page]
        shutil.copytree(request.getfixturevalue(fixture), folder / "runs" / name)


def read(page: Path, folder: Path) -> tuple[int, str]:
    """Does what a page says. Returns the exit code, and all that was printed."""
    blocks = [
        (block.line, block.mark or block.language, block.code, block.said)
        for block in blocks_of(page)
        if block.runs or block.mark == "file"
    ]
    path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        [sys.executable, "-c", READER], cwd=folder, input=json.dumps(blocks), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env=own | {"PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def readings(request, tmp_path_factory) -> Iterator[dict[Path, Future]]:
    """Of the pages that are asked for, two at a time: a command is mostly start-up, which leaves a core idle."""
    asked = [item.callspec.params["page"] for item in request.session.items if item.path == request.path]
    with ThreadPoolExecutor(2) as readers:
        found = {}
        for page in asked:
            folder = tmp_path_factory.mktemp(page.stem)
            make_checkout(folder)
            readers_data(page.name, folder, request)
            found[page] = readers.submit(read, page, folder)
        yield found


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page, readings):
    code, printed = readings[page].result()
    print(printed)
    assert code == 0
