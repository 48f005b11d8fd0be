"""What must not change: the triplets of given embeddings, in order, for a dozen combinations of options.

The digests were taken before the code was rearranged. They are over (anchor, positive, negative, kind, d_ap, d_an),
read back from the records, so that neither the files' layout nor the way records are encoded has a part in them. A
change here changes what a triplet is: then it is to be said in the CHANGELOG.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from conftest import copied, packs_of

from pipeline import ingest, mine
from pipeline.mining import job
from pipeline.mining.options import MiningOptions
from pipeline.mining.work import Tiling
from pipeline.packs.packs import PackOptions
from pipeline.triplets.arrays import mine_triplets
from trainer import init

ROWS = 5000  # two column blocks, twenty anchor blocks, three work items
# Their squares sum to 2048 ** 2: as multiples of 2^-11, in any order and with any signs, they are a unit vector.
SIZES = np.array([1087, 941, 768, 655, 544, 431, 390, 312, 260, 201, 155, 120, 77, 53, 140, 450])


def given() -> dict[str, Any]:
    """Unit vectors on the grid round a centre a class, with copies, groups, and classes of 1 to 400 rows."""
    rng = np.random.default_rng(7)
    label = np.sort(np.minimum(rng.geometric(0.04, ROWS), 60))
    vectors = np.empty((ROWS, len(SIZES)))
    for number in np.unique(label):
        centre, signs = rng.permutation(len(SIZES)), rng.choice([-1, 1], len(SIZES))
        for row in np.flatnonzero(label == number):
            order, sign = centre.copy(), signs.copy()
            for a, b in rng.integers(0, len(SIZES), (rng.integers(1, 8), 2)):
                order[[a, b]] = order[[b, a]]
            sign[rng.integers(0, len(SIZES), rng.integers(0, 4))] *= -1
            vectors[row] = SIZES[order] * sign
    vectors[rng.integers(0, ROWS, 300)] = vectors[rng.integers(0, ROWS, 300)]
    group = rng.integers(-300, 900, ROWS)
    return {
        "vector": (vectors / 2048).astype(np.float32), "label": [f"c{number:03}" for number in label],
        "id": [f"{number:06}" for number in rng.permutation(ROWS)],
        "group": [None if number < 0 else f"g{number}" for number in group],
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory whose network gives the vectors back as they are."""
    import keras

    directory = tmp_path_factory.mktemp("given")
    columns = given()
    pq.write_table(pa.table(columns | {"vector": list(columns["vector"])}), directory / "given.parquet")
    vectors = keras.Input((len(SIZES),))
    keras.Model(vectors, keras.layers.UnitNormalization()(vectors)).save(directory / "as-it-is.keras")
    call = ["--run_dir", str(directory / "run")]
    none = ["--validation_share", "0", "--eval_share", "0"]
    assert ingest.main([*call, "--source", f"parquet:{directory / 'given.parquet'}", *none]) == 0
    assert init.main([*call, "--model", str(directory / "as-it-is.keras")]) == 0
    return directory / "run"


def digest_of(columns: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for column, dtype in zip(columns, ("<i8", "<i8", "<i8", "<i1", "<f4", "<f4"), strict=True):
        digest.update(np.ascontiguousarray(column, dtype).tobytes())
    return digest.hexdigest()[:16]


GUARDED = "--negatives semi-hard,hard --min_negative_distance 0.3 --min_negative_ratio 0.9 --margin 0.4"
LONE = "--pack_rows 3"
SPREAD = "--packs spread --pack_rows"
COMBINATIONS = {
    "53853e25d07a1fc5": "",
    "2b33ec49c014fa2b": "--pick nearest --positives 3 --negatives semi-hard,hard",
    "5f48683022dc39c3": f"{LONE} --negatives hard --pick nearest",
    "ecac4c058905d9cd": "--negatives semi-hard:1,hard:3 --margin 0.05 --seed 5 --positives 2",
    "b54885538dab0e1e": "--anchors 700 --positives 2 --margin 0.4",
    "ff0386c00f485ed2": GUARDED,
    "bb32e6e63886fbbc": f"{GUARDED} --pick nearest",
    "7e7aa155df8c6b8a": f"{LONE} --negatives hard,semi-hard --min_negative_ratio 0.95 --pick nearest --positives 4",
    "55f619173f9cbd2c": "--pack_pick nearest --fill 2 --pack_rows 32 --margin 1.0",
    "d0b515f70a73e7c7": "--pick nearest --pack_pick random --margin 0.05 --fill 8",
    "dbd700d754cefa88": f"{SPREAD} 32 --fill 2 --margin 1.0 --pack_pick nearest",
    "a81d2c7df1d2aeef": f"{SPREAD} 64 --fill 4 --anchors 900 --negatives hard --min_negative_distance 0.1",
    "d3222779f5169589": f"{SPREAD} 128 --negatives semi-hard,hard --margin 0.3 --seed 9",
    "1bf60f3c2d013e98": f"{LONE} --positives 2 --margin 0.6 --seed 2",
}


@pytest.mark.parametrize("expected", COMBINATIONS)
def test_the_triplets_are_what_they_were(run, tmp_path, expected):
    own = copied(run, tmp_path)
    assert mine.main(["--run_dir", str(own), *COMBINATIONS[expected].split()]) == 0
    assert written_in(own) == expected


def written_in(run_dir: Path) -> str:
    """The digest of a mined round's triplets."""
    packs = packs_of(run_dir)
    sides = [np.concatenate([pack["row"][pack[side]] for pack in packs]) for side in ("anchor", "positive", "negative")]
    return digest_of([*sides, *(np.concatenate([pack[name] for pack in packs]) for name in ("kind", "d_ap", "d_an"))])


BOTH = (("semi-hard", 1.0), ("hard", 1.0))


@pytest.mark.parametrize(
    ("expected", "mining"),
    [
        ("53853e25d07a1fc5", MiningOptions()),
        ("2b33ec49c014fa2b", MiningOptions(pick="nearest", positives=3, negatives=BOTH)),
    ],
)
def test_the_triplets_are_the_same_in_the_smallest_work_items(run, tmp_path, expected, mining):
    """An anchor block each, and of `nearest` one column block: what two items found is merged."""
    own, beam = copied(run, tmp_path), PipelineOptions(["--runner=FnApiRunner"])
    job.mine(own, mining, PackOptions(), beam, threads=3, tiling=Tiling(blocks=1, columns=1))
    assert written_in(own) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "0d9b60cd516f50da"),
        (
            {"kind": {"semi-hard": 1, "hard": 2}, "pick": "nearest", "positives": 3, "margin": 0.4, "seed": 3},
            "c04f4e189eba25b5",
        ),
    ],
)
def test_the_triplets_of_arrays_are_what_they_were(options, expected):
    arrays = given()
    found = mine_triplets(arrays["vector"], arrays["label"], **options)
    names = ("anchor", "positive", "negative", "kind", "d_ap", "d_an")
    assert digest_of([getattr(found, name) for name in names]) == expected
