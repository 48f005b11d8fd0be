"""Manifests: typed, of one format, and never a way out of their folder."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from pipeline.corpus.manifest import CorpusShard
from pipeline.errors import InputError
from pipeline.files import manifests, storage
from pipeline.files.manifests import Shard


@dataclass(frozen=True, kw_only=True)
class Album:
    FORMAT: ClassVar[str] = "album/1"
    title: str
    shards: list[Shard]
    note: str | None = None


SHARD = Shard(file="a.tfrecord", records=1, bytes=3, sha256="0")
ALBUM = Album(title="ein Lied", shards=[SHARD])


def test_a_manifest_is_read_back(tmp_path):
    manifests.write(tmp_path / "album.json", ALBUM)
    assert manifests.read(tmp_path / "album.json", Album) == ALBUM
    assert json.loads((tmp_path / "album.json").read_text())["format"] == "album/1"
    assert manifests.read_if_there(tmp_path / "other.json", Album) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "album.json is not a manifest"),
        ("[]", "has format None, expected 'album/1'"),
        ('{"format": "album/2", "title": "", "shards": []}', "has format 'album/2'"),
        ('{"format": "album/1", "shards": []}', "missing required field `title`"),
        ('{"format": "album/1", "title": 3, "shards": []}', r"Expected `str`, got `int` - at `\$.title`"),
    ],
)
def test_what_is_no_such_manifest_is_refused_with_the_reason(tmp_path, text, message):
    (tmp_path / "album.json").write_text(text)
    with pytest.raises(InputError, match=message):
        manifests.read(tmp_path / "album.json", Album)


def test_the_checksums_line_can_be_removed_as_the_message_says(tmp_path):
    path = tmp_path / "album.json"
    manifests.write(path, ALBUM)
    path.write_text(path.read_text().replace("ein Lied", "zwei"))
    with pytest.raises(InputError, match="remove its line checksum"):
        manifests.read(path, Album)
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "checksum" not in line))
    assert manifests.read(path, Album) == replace(ALBUM, title="zwei")


def test_a_manifest_that_was_changed_is_refused_unless_its_checksum_is_left_out(tmp_path):
    path = tmp_path / "album.json"
    manifests.write(path, ALBUM)
    text = path.read_text()
    path.write_text(text.replace('"records": 1', '"records": 2'))
    with pytest.raises(InputError, match="album.json was changed since .* if the change is meant, remove its line"):
        manifests.read(path, Album)
    told = json.loads(path.read_text())
    del told["checksum"]
    path.write_text(json.dumps(told))
    assert manifests.read(path, Album).shards[0].records == 2
    for name in ("note", "checksum"):  # a field with another name is none
        path.write_text(text.replace(f'"{name}"', f'"{name[:-1]}_"'))
        if name == "note":
            with pytest.raises(InputError, match="was changed"):
                manifests.read(path, Album)


def test_a_manifest_of_another_place_is_refused(tmp_path):
    path = tmp_path / "album.json"
    manifests.write(path, ALBUM)
    assert manifests.read(path, Album, title="ein Lied", note="any") == ALBUM
    with pytest.raises(InputError, match="album.json is of title 'ein Lied', expected 'zwei'. Put the right file back"):
        manifests.read_if_there(path, Album, title="zwei")


def test_what_json_has_no_word_for_is_summed_as_it_is_read(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Odd:
        FORMAT: ClassVar[str] = "odd/1"
        values: dict[str, float | None]

    manifests.write(tmp_path / "odd.json", Odd(values={"b": float("nan"), "a": 0.1, "ä": 1e300}))
    assert manifests.read(tmp_path / "odd.json", Odd).values == {"b": None, "a": 0.1, "ä": 1e300}


def test_no_flipped_bit_of_a_manifest_goes_unseen(tmp_path):
    path = tmp_path / "album.json"
    manifests.write(path, ALBUM)
    before = path.read_bytes()
    for bit in range(8 * len(before)):
        data = bytearray(before)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert manifests.read(path, Album) == ALBUM
        except InputError:
            pass


HOSTILE = ["../a.tfrecord", "/etc/passwd", "..", ".", "", "a/b", "a/", "./a", "a\0b"]
OTHERS = {"index": "a.npy", "index_bytes": 1, "index_sha256": "0"}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", [Shard, CorpusShard])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name, kind):
    @dataclass(frozen=True, kw_only=True)
    class Listing:
        FORMAT: ClassVar[str] = "listing/1"
        shards: list[kind]

    right = {**vars(SHARD), **{key: value for key, value in OTHERS.items() if key in kind.__dataclass_fields__}}
    for field in {"file", "index"} & kind.__dataclass_fields__.keys():
        manifests.write_json(tmp_path / "l.json", {"format": "listing/1", "shards": [{**right, field: name}]})
        with pytest.raises(InputError, match=r"l.json: .* is not the name of a file in the manifest's own folder"):
            manifests.read(tmp_path / "l.json", Listing)
    manifests.write_json(tmp_path / "l.json", {"format": "listing/1", "shards": [right]})
    assert manifests.read(tmp_path / "l.json", Listing).shards[0].file == "a.tfrecord"


def test_a_shard_that_is_not_what_its_manifest_lists_is_named(tmp_path):
    manifest, path = tmp_path / "album.json", tmp_path / "a.tfrecord"
    with pytest.raises(InputError, match="a.tfrecord is missing, .*album.json lists it"):
        manifests.check_shard(manifest, SHARD)
    path.write_bytes(b"abc")
    with pytest.raises(InputError, match="3 bytes, SHA-256 .*, expected 3 bytes, 0. Restore it, or make .* again"):
        manifests.check_shard(manifest, SHARD)
    manifests.check_shard(manifest, Shard(file=path.name, records=1, bytes=3, sha256=storage.sha256_of(path)))


def test_a_digest_is_of_the_content_not_of_its_order():
    one, other = manifests.sha256_of_json({"a": 1, "b": [ALBUM]}), manifests.sha256_of_json({"b": [ALBUM], "a": 1})
    assert one == other != manifests.sha256_of_json({"a": 1, "b": []})
