"""Images and TFRecords as people have them: what is stored decodes to what is seen, and nothing is lost in silence."""

import gzip
import io
import json
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from corpora import NO_HOLD_OUT, everything, ingested, make, png, read_source, write_csv, write_images
from PIL import Image, ImageOps

from pipeline.corpus.corpus import Corpus
from pipeline.errors import InputError
from pipeline.files import tfrecords

CASES = Path(__file__).parents[1] / "data" / "cases"
GRADIENT = np.arange(24 * 16, dtype=np.uint32).reshape(16, 24)
COLOURS = np.stack([GRADIENT % 251, GRADIENT[::-1] % 241, GRADIENT[:, ::-1] % 239], axis=2).astype(np.uint8)
PICTURE = Image.fromarray(COLOURS)
MASK = Image.fromarray((GRADIENT % 256).astype(np.uint8))


def seen(encoded, white=None):
    """What Pillow shows, transparency on white; of 16 bits `white` is 255. uint8 [height, width, 3]."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    if image.mode.startswith("I"):
        return np.repeat((np.asarray(image).astype(int) * 256 // (white + 1)).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image.getchannel("A"))
        image = ground
    return np.asarray(image.convert("RGB"))


def assert_seen(example, encoded, white=None):
    """The stored image is a PNG or JPEG, and TensorFlow decodes it to what is seen."""
    [stored] = example["image"]
    decoded = tf.io.decode_image(stored, channels=3, expand_animations=False).numpy()
    expected = seen(encoded, white)
    assert decoded.shape == expected.shape
    difference = np.abs(decoded.astype(int) - expected)
    if stored == encoded and stored.startswith(b"\xff\xd8"):  # two decoders of JPEG
        assert difference.max() <= 10 and difference.mean() < 2
    else:
        assert difference.max() <= 1 and stored.startswith(b"\x89PNG")


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_alpha():
    image = PICTURE.copy()
    image.putalpha(MASK)
    return image


def animation():
    frames = [PICTURE.quantize(16), Image.new("P", PICTURE.size, 3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


OWN = {  # what is stored as it is
    "rgb.png": encoded(PICTURE, "PNG"),
    "gray.png": encoded(MASK, "PNG"),
    "palette.png": encoded(PICTURE.quantize(16), "PNG"),
    "bits.png": encoded(PICTURE.convert("1"), "PNG"),
    "opaque.png": encoded(PICTURE.convert("RGBA"), "PNG"),
    "plain.jpg": encoded(PICTURE, "JPEG"),
    "gray.jpeg": encoded(MASK, "JPEG"),
    "upright.JPG": encoded(PICTURE, "JPEG", exif=turned(1)),
    "exif-is-damaged.jpg": encoded(PICTURE, "JPEG", exif=b"Exif\0\0garbage"),
    "two-pictures.jpg": encoded(PICTURE, "MPO", save_all=True, append_images=[MASK.convert("RGB")]),
    "name says png": encoded(PICTURE, "JPEG"),
}
CHANGED = {  # what is stored as PNG
    "plain.webp": encoded(PICTURE, "WEBP", lossless=True),
    "alpha.webp": encoded(with_alpha(), "WEBP", lossless=True),
    "alpha.png": encoded(with_alpha(), "PNG"),
    "gray-alpha.png": encoded(with_alpha().convert("LA"), "PNG"),
    "palette-transparent.png": encoded(PICTURE.quantize(16), "PNG", transparency=3),
    "colour-key.png": encoded(PICTURE, "PNG", transparency=tuple(COLOURS[0, 0].tolist())),
    "cmyk.jpg": encoded(PICTURE.convert("CMYK"), "JPEG"),
    "palette.gif": encoded(PICTURE.quantize(16), "GIF"),
    "transparent.gif": encoded(PICTURE.quantize(16), "GIF", transparency=2),
    "animation.gif": animation(),
    "plain.tiff": encoded(PICTURE, "TIFF", compression="tiff_lzw"),
    "fax.tif": encoded(PICTURE.convert("1"), "TIFF", compression="group4"),
    "cmyk.tif": encoded(PICTURE.convert("CMYK"), "TIFF"),
    "plain.bmp": encoded(PICTURE, "BMP"),
    "gray.pgm": encoded(MASK, "PPM"),
    "plain.ppm": encoded(PICTURE, "PPM"),
    "icon.ico": encoded(with_alpha(), "ICO", sizes=[(16, 16)]),
    **{f"exif{n}.jpg": encoded(PICTURE, "JPEG", exif=turned(n)) for n in range(2, 9)},
    "exif8.png": encoded(PICTURE, "PNG", exif=turned(8)),
    "exif6.webp": encoded(PICTURE, "WEBP", exif=turned(6)),
    "exif3.tif": encoded(PICTURE, "TIFF", exif=turned(3)),
}


def write(folder, files):
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def reasons(run_dir):
    lines = (run_dir / "corpus" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["source"]: line["reason"] for line in map(json.loads, lines)}


def by_name(corpus):
    return {os.path.basename(example["id"][0].decode()): example for example in everything(corpus)}


# ---- Pixels. ----


@pytest.fixture(scope="module")
def of_a_folder(tmp_path_factory):
    """Every kind of image, from a folder."""
    directory = tmp_path_factory.mktemp("kinds")
    write(directory / "source" / "a", OWN)
    write(directory / "source" / "b", CHANGED)
    return by_name(ingested(directory / "run", f"images:{directory / 'source'}", **NO_HOLD_OUT))


@pytest.mark.parametrize("name", [*OWN, *CHANGED])
def test_what_is_stored_decodes_to_what_is_seen(of_a_folder, name):
    data = (OWN | CHANGED)[name]
    assert_seen(of_a_folder[name], data)
    assert (of_a_folder[name]["image"] == [data]) is (name in OWN)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_transparent_image_of_more_than_a_megapixel_is_seen_whole(tmp_path, mode):
    """It is converted in strips."""
    size = (1100, 1300)
    image = PICTURE.resize(size)
    image.putalpha(MASK.resize(size))
    data = encoded(image.convert(mode), "PNG")
    write(tmp_path / "source" / "a", {"large.png": data})
    [example] = everything(ingested(tmp_path / "run", f"images:{tmp_path / 'source'}", **NO_HOLD_OUT))
    assert_seen(example, data)


@pytest.mark.parametrize("source", ["csv", "parquet", "tfrecord"])
def test_images_are_the_same_from_every_source(of_a_folder, tmp_path, source):
    files = OWN | CHANGED
    write(tmp_path / "i", files)
    names, labels = list(files), ["ab"[number % 2] for number in range(len(files))]
    if source == "csv":
        write_csv(tmp_path / "t.csv", [["path", "id", "label"], *([f"i/{n}", n, "a"] for n in names)])
    elif source == "parquet":
        pq.write_table(pa.table({"id": names, "image": list(files.values()), "label": labels}), tmp_path / "t.parquet")
    else:
        rows = [{"id": [name.encode()], "image": [data], "label": [b"a"]} for name, data in files.items()]
        tfrecords.write_records(tmp_path / "t.tfrecord", map(tfrecords.make_example, rows))
    found = by_name(ingested(tmp_path / "run", f"{source}:{tmp_path}/t.{source}", **NO_HOLD_OUT))
    assert {name: example["image"] for name, example in found.items()} == {
        name: example["image"] for name, example in of_a_folder.items()
    }


def test_the_pictures_of_the_case(tmp_path):
    corpus = ingested(tmp_path / "run", f"images:{CASES / 'pixels'}", **NO_HOLD_OUT)
    found = everything(corpus)
    assert len(found) == 5
    for example in found:
        assert_seen(example, (CASES / "pixels" / example["id"][0].decode()).read_bytes(), white=255)
    assert corpus.manifest.features["image"].shape == (16, 24, 3)


@pytest.mark.parametrize("brightest", [200, 1000, 4095, 65_535])
def test_16_bits_become_8_by_one_factor_that_is_printed(tmp_path, brightest):
    white = max(255, 2 ** brightest.bit_length() - 1)
    bright = (GRADIENT * brightest // GRADIENT.max()).astype(np.uint16)
    images = {"bright": bright, "dark": bright // 3}
    files = {f"{name}.png": encoded(Image.fromarray(pixels), "PNG") for name, pixels in images.items()}
    files |= {f"{name}.tif": encoded(Image.fromarray(pixels), "TIFF") for name, pixels in images.items()}
    files["turned.png"] = encoded(Image.fromarray(bright), "PNG", exif=turned(6))
    write(tmp_path / "source" / "deep", files)
    write(tmp_path / "source" / "plain", {"plain.png": png(77)})
    made = make(tmp_path / "run", f"images:{tmp_path / 'source'}", **NO_HOLD_OUT)
    assert f"images of 16 bits a pixel are among them: {white:,} becomes 255" in str(made)
    found = by_name(Corpus.open(tmp_path / "run"))
    for name, data in files.items():
        assert_seen(found[name], data, white)
    assert found["plain.png"]["image"] == [png(77)]
    assert f"{white:,} becomes 255" in str(make(tmp_path / "run", f"images:{tmp_path / 'source'}", **NO_HOLD_OUT))
    Corpus.open(tmp_path / "run").split("train").check()


def test_16_bits_of_a_pgm(tmp_path):
    data = encoded(Image.fromarray((GRADIENT * 170).astype(np.int32)), "PPM")
    write(tmp_path / "source" / "a", {"a.pgm": data})
    [example] = everything(ingested(tmp_path / "run", f"images:{tmp_path / 'source'}", **NO_HOLD_OUT))
    assert_seen(example, data, white=65_535)


# ---- What is no image. ----


def test_what_is_no_image_is_rejected_by_name(tmp_path):
    deep = GRADIENT.astype(np.float32)
    bad = {
        "cut.jpg": OWN["plain.jpg"][:-40], "half.jpg": OWN["plain.jpg"][:-200], "cut.png": OWN["rgb.png"][:-60],
        "cut.webp": CHANGED["plain.webp"][:-30], "cut.gif": CHANGED["animation.gif"][:150],
        "cut.tif": CHANGED["plain.tiff"][:100], "empty.png": b"", "notes.txt": b"not an image", "no suffix": b"neither",
        "floats.tif": encoded(Image.fromarray(deep), "TIFF"),
        "integers.tif": encoded(Image.fromarray((GRADIENT * 1000).astype(np.int32)), "TIFF"),
        "bomb.png": encoded(Image.new("1", (30_000, 30_000)), "PNG"),
        "large.png": encoded(Image.new("1", (10_100, 10_000)), "PNG"),
    }  # fmt: skip
    write(tmp_path / "source" / "a", bad | {f"{number}.png": png(number) for number in range(4)})
    (tmp_path / "source" / "a" / "link.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "source" / "README.md").write_text("What this is.")
    os.mkfifo(tmp_path / "source" / "a" / "pipe")
    made = make(tmp_path / "run", f"images:{tmp_path / 'source'}", max_rejected=0.9, **NO_HOLD_OUT)
    assert (made.rows["train"], made.rejected) == (4, len(bad) + 2) and f"{len(bad) + 2} rejected" in str(made)
    why = reasons(tmp_path / "run")
    assert why.pop("README.md") == "no image that Pillow reads"
    assert {os.path.basename(name) for name in why} == {*bad, "link.png"}
    assert why["a/cut.jpg"].startswith("cannot be shown: image file is truncated")
    assert why["a/empty.png"] == "the file is empty" and why["a/notes.txt"] == "no image that Pillow reads"
    assert "32 bits" in why["a/floats.tif"] and "32 bits" in why["a/integers.tif"]
    assert all("more than 100,000,000" in why[f"a/{name}.png"] for name in ("bomb", "large"))


def test_an_image_behind_a_path_is_named(tmp_path):
    write(tmp_path / "i", {f"{number}.png": png(number) for number in range(8)} | {"cut.jpg": OWN["plain.jpg"][:-40]})
    paths = [f"{number}.png" for number in range(8)] + ["cut.jpg", "none.jpg"]
    write_csv(tmp_path / "t.csv", [["path", "label"], *([f"i/{path}", "a"] for path in paths)])
    made = make(tmp_path / "run", f"csv:{tmp_path}/t.csv", max_rejected=0.5, **NO_HOLD_OUT)
    assert (made.rows["train"], made.rejected) == (8, 2)
    why = reasons(tmp_path / "run")
    assert "'i/cut.jpg': cannot be shown: image file is truncated" in why["t.csv:0000008"]
    assert "'i/none.jpg': " in why["t.csv:0000009"] and "No such file" in why["t.csv:0000009"]


# ---- Folders. ----


def labels_of(directory, source):
    corpus = ingested(directory / "run", f"images:{source}", **NO_HOLD_OUT)
    assert corpus.manifest.rejected == 0
    split = corpus.split("train")
    return dict(zip(split.labels, np.diff(split.first_rows).tolist(), strict=True))


def test_every_webp_of_a_folder_is_a_row(tmp_path):
    assert labels_of(tmp_path, CASES / "webp-mixed") == {"cat": 5, "dog": 5}


def test_the_folders_of_a_zip_from_a_mac(tmp_path):
    assert labels_of(tmp_path, CASES / "mac-zip") == {"cat": 4, "dog": 4}
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as file:
        for name in ("birds/owl/0.png", "__MACOSX/birds/owl/._0.png", "birds/._owl", "birds/.DS_Store"):
            file.writestr(name, png(1))
    zipfile.ZipFile(tmp_path / "mac.zip").extractall(tmp_path / "unzipped")
    assert labels_of(tmp_path / "2", tmp_path / "unzipped") == {"birds/owl": 1}


def test_what_systems_and_notebooks_leave_is_nobodys_class(tmp_path):
    write_images(tmp_path / "source", classes=2)
    for name in (".ipynb_checkpoints", "@eaDir", ".git", "alphabet/.ipynb_checkpoints", "alphabet/class0/.thumbnails"):
        write(tmp_path / "source" / name, {"0-checkpoint.png": png(1)})
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", ".hidden.png"):
        (tmp_path / "source" / "alphabet" / "class1" / name).write_bytes(png(2))
    assert labels_of(tmp_path, tmp_path / "source") == {"alphabet/class0": 4, "alphabet/class1": 4}


def test_linked_folders_are_followed_once(tmp_path):
    """To a folder elsewhere, twice; to one that has a name of its own below the root; up; to itself."""
    source = tmp_path / "source"
    write_images(source, classes=2)
    write(tmp_path / "elsewhere", {"0.png": png(1), "1.png": png(2)})
    (tmp_path / "elsewhere" / "up").symlink_to(source)
    for name, to in {
        "bird": tmp_path / "elsewhere", "bird again": tmp_path / "elsewhere", "a first": source / "alphabet" / "class1",
        "alphabet/round": source, "itself": source / "itself",
    }.items():  # fmt: skip
        (source / name).symlink_to(to)
    corpus = ingested(tmp_path / "run", f"images:{source}", **NO_HOLD_OUT)
    assert corpus.split("train").labels == ["alphabet/class0", "alphabet/class1", "bird"]
    assert corpus.split("train").rows == 10
    assert list(reasons(tmp_path / "run")) == ["itself"]


def test_a_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "0.png").write_bytes(png(1))
    with pytest.raises(InputError, match="no folder with files in it. Give images:DIR, with one folder a class"):
        make(tmp_path / "run", f"images:{tmp_path}")


# ---- TFRecords. ----


def of_tfrecords(run_dir, source, **options):
    return everything(ingested(run_dir, f"tfrecord:{source}", **options, **NO_HOLD_OUT))


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("zlib.tfrecord,image=image/encoded,label=image/class/label", "image"),
        ("first-record-without-id.tfrecord", "image"),
        ("s-*.tfrecord", "vector"),
        ("bytes-vector.tfrecord,dtype=float32", "vector"),
    ],
)
def test_the_files_of_the_cases(tmp_path, source, kind):
    found = of_tfrecords(tmp_path, f"{CASES}/{source}")
    assert len(found) == 8 and all(kind in example for example in found)
    if "without-id" in source:
        ids = [example["id"][0] for example in found]
        assert sum(id.startswith(b"first-record-without-id.tfrecord:") for id in ids) == 1


def test_bytes_without_a_type_are_said_to_need_one(tmp_path):
    with pytest.raises(InputError, match=r"8 were rejected.*vector is bytes and no text.*dtype=float32"):
        make(tmp_path, f"tfrecord:{CASES}/bytes-vector.tfrecord")
    with pytest.raises(InputError, match=r"'float3' not understood. Say dtype=float32"):
        make(tmp_path, f"tfrecord:{CASES}/bytes-vector.tfrecord,dtype=float3")
    with pytest.raises(InputError, match=r"8 were rejected.*16 bytes are no image of uint8 \[28, 28, 1\]"):
        make(tmp_path, f"tfrecord:{CASES}/bytes-vector.tfrecord,image=vector,dtype=uint8,shape=28x28x1")
    with pytest.raises(InputError, match=r"16 bytes are no image of uint8 \[-1\]"):
        make(tmp_path, f"tfrecord:{CASES}/bytes-vector.tfrecord,image=vector,dtype=uint8")


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_compressed_files_are_read_and_cut_ones_refused(tmp_path, compress):
    rows = [{"text": [f"text {n}".encode()], "label": [b"a"]} for n in range(300)]
    tfrecords.write_records(tmp_path / "plain", map(tfrecords.make_example, rows))
    data = compress((tmp_path / "plain").read_bytes())
    (tmp_path / "packed").write_bytes(data)
    found = read_source(f"tfrecord:{tmp_path / 'packed'}")
    assert [example.payload for example in found] == [row["text"][0] for row in rows]
    for bad in (data[:-5], data[: len(data) // 2], data[:20], compress(b"no records at all, but 12 bytes")):
        (tmp_path / "cut").write_bytes(bad)
        with pytest.raises(InputError, match="cut: "):
            read_source(f"tfrecord:{tmp_path / 'cut'}")


@pytest.mark.parametrize("length", [0x8B1F, 0x9C78])
def test_a_file_that_only_begins_as_if_it_were_compressed_is_read(tmp_path, length):
    empty = len(tfrecords.make_example({"label": [b"a"], "text": [b"x" * 30_000]})) - 30_000
    record = tfrecords.make_example({"label": [b"a"], "text": [b"x" * (length - empty)]})
    tfrecords.write_records(tmp_path / "t", [record])
    assert len(record) == length and len(of_tfrecords(tmp_path / "run", tmp_path / "t")) == 1


def test_fields_are_looked_for_in_all_shards(tmp_path):
    """An empty shard, one of other things, a record that is none, an id and a group in the last record only."""
    last = {"text": [b"last"], "label": [b"b"], "id": [b"mine"], "group": [b"g"]}
    shards = [[], [b"\xff\xff\xff"], [{"note": [b"x"]}], [{"text": [b"t"], "label": [b"a"]}] * 3 + [last]]
    for number, rows in enumerate(shards):
        records = [row if isinstance(row, bytes) else tfrecords.make_example(row) for row in rows]
        tfrecords.write_records(tmp_path / f"{number}", records)
    made = make(tmp_path / "run", f"tfrecord:{tmp_path}/?", max_rejected=0.5, **NO_HOLD_OUT)
    assert (made.rows["train"], made.rejected) == (4, 2)
    assert everything(Corpus.open(tmp_path / "run"))[-1]["id"] == [b"mine"]
    assert everything(Corpus.open(tmp_path / "run"))[-1]["group"] == [b"g"]
    with pytest.raises(InputError, match="no tf.train.Example is in it"):
        make(tmp_path / "2", f"tfrecord:{tmp_path}/[01]")
    with pytest.raises(InputError, match="there is no 'texts' for text=; did you mean text"):
        make(tmp_path / "2", f"tfrecord:{tmp_path}/?,text=texts")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ">f4", "int16", "uint8"])
def test_raw_vectors(tmp_path, dtype):
    vectors = np.arange(40).reshape(10, 4).astype(dtype)
    rows = [{"emb": [vector.tobytes()], "label": [b"a"]} for vector in vectors]
    tfrecords.write_records(tmp_path / "t", map(tfrecords.make_example, rows))
    found = read_source(f"tfrecord:{tmp_path / 't'},vector=emb,dtype={dtype}")
    np.testing.assert_array_equal([example.payload for example in found], vectors.astype(np.float32))


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (9, 7, 3), (6, 5, 4)])
def test_raw_pixels_and_one_bad_record(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    rows = [{"pixels": [image.tobytes()], "label": np.array([number % 2])} for number, image in enumerate(pixels)]
    rows[5]["pixels"] = [b"too short"]
    rows[7] = {"pixels": np.array([1, 2, 3]), "label": np.array([1])}
    tfrecords.write_records(tmp_path / "t", map(tfrecords.make_example, rows))
    source = f"{tmp_path / 't'},image=pixels,dtype=uint8,shape={'x'.join(map(str, shape))}"
    found = of_tfrecords(tmp_path / "run", source, max_rejected=0.2)
    assert len(found) == 10 and sorted(reasons(tmp_path / "run")) == ["t:0000005", "t:0000007"]
    for example in found:
        number = int(example["id"][0].decode()[-7:])
        image = Image.fromarray(pixels[number].reshape(*shape[:2], *shape[2:]).squeeze())
        assert_seen(example, encoded(image, "PNG"))


def test_one_bad_image_leaves_only_its_record_out(tmp_path):
    rows = [{"image": [png(number)], "label": [b"a"]} for number in range(20)]
    rows[3]["image"] = [OWN["plain.jpg"][:-40]]
    tfrecords.write_records(tmp_path / "t", map(tfrecords.make_example, rows))
    assert len(of_tfrecords(tmp_path / "run", tmp_path / "t")) == 19
    assert "truncated" in reasons(tmp_path / "run")["t:0000003"]
