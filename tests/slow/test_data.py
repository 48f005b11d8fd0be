"""Real files that pip brings: whatever they are, they are stored, rejected with a reason, or refused in one line.

    make test-data
"""

import csv
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.datasets
from corpora import NO_HOLD_OUT, make

from pipeline.errors import InputError

pytestmark = pytest.mark.slow
PACKAGES = Path(sysconfig.get_paths()["purelib"])
SKLEARN = Path(sklearn.datasets.__file__).parent
IMAGES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ico", ".pgm", ".svg", ".fits", ".pdf"}


def counted(run_dir, source, rows):
    """Ingests, prints rows in = rows stored + rows rejected, and returns the rows stored."""
    try:
        made = make(run_dir, source, max_rejected=0.99, **NO_HOLD_OUT)
    except InputError as error:
        print(f"{rows:>6,} rows: refused   {str(error).replace(str(PACKAGES), '')[:150]}")
        return 0
    stored = sum(made.rows.values())
    print(f"{rows:>6,} rows = {stored:,} stored + {made.rejected:,} rejected   {source}")
    assert rows == stored + made.rejected
    return stored


def test_every_image_of_every_package(tmp_path):
    """One class a package; among them what only looks like an image."""
    files = sorted(path for path in PACKAGES.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    for number, path in enumerate(files):
        folder = tmp_path / "source" / path.relative_to(PACKAGES).parts[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}-{path.name}").symlink_to(path)
    print()
    assert counted(tmp_path / "run", f"images:{tmp_path / 'source'}", len(files)) >= 2


def test_photos_as_they_are_and_by_a_table(tmp_path):
    photos = sorted((SKLEARN / "images").glob("*.jpg"))
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"{path},{path.stem}\n" for path in photos))
    pq.write_table(
        pa.table({"image": [path.read_bytes() for path in photos], "label": [path.stem for path in photos]}),
        tmp_path / "t.parquet",
    )  # fmt: skip
    print()
    for source in (f"csv:{tmp_path / 't.csv'},inside=/", f"parquet:{tmp_path / 't.parquet'}"):
        assert counted(tmp_path / source[:3], source, len(photos)) == len(photos) == 2


def test_every_table_of_scikit_learn(tmp_path):
    stored, tables = 0, sorted((SKLEARN / "data").glob("*.csv"))
    print()
    for path in tables:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        source = f"csv:{path},text={header[0]},label={header[-1]}"
        stored += counted(tmp_path / path.stem, source, len(rows))
    assert len(tables) >= 4 and stored >= 150
