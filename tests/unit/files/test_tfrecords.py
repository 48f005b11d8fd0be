"""TFRecord files: what is written is read back, and what is broken is found."""

import struct

import google_crc32c
import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import InputError
from pipeline.files import tfrecords

RECORDS = [b"one", b"", b"three" * 100]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.tfrecord"
    entry = tfrecords.write_records(path, RECORDS)
    assert (entry.file, entry.records, entry.bytes) == ("some.tfrecord", 3, path.stat().st_size)
    return path


def test_records_are_read_back_by_us_and_by_tensorflow(file):
    assert list(tfrecords.read_records(file)) == RECORDS
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(file))] == RECORDS
    lengths = list(map(len, RECORDS))
    offsets = tfrecords.offsets_of(lengths).tolist()
    assert tfrecords.read_records_at(file, offsets[::-1], lengths[::-1]) == RECORDS[::-1]


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("position", "message"),
    [(2, "record 0 .* length's checksum"), (13, "at byte 0 .* data's"), (-1, "at byte 35 .* data's")],
)
def test_a_flipped_bit_is_found(file, position, message):
    flip(file, position)
    with pytest.raises(InputError, match=message):
        list(tfrecords.read_records(file))


def test_a_flipped_bit_is_found_where_records_are_asked_for_by_position(file):
    flip(file, -6)
    with pytest.raises(InputError, match="at byte 35 .* data's"):
        tfrecords.read_records_at(file, [35], [500])


@pytest.mark.parametrize("cut", [1, 300, 515])
def test_a_cut_file_is_found(file, cut):
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(InputError, match="record 2 .*cut off"):
        list(tfrecords.read_records(file))
    with pytest.raises(InputError, match="at byte 35 .* data's"):
        tfrecords.read_records_at(file, [35], [500])


def test_an_empty_file_is_named(file):
    file.write_bytes(b"")
    with pytest.raises(InputError, match="some.tfrecord is empty; it was to hold 1 records"):
        tfrecords.read_records_at(file, [0], [3])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: flip(path, 2), "record 0 at byte 0 is corrupt"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "record 2 at byte 35 is cut off"),
        (lambda path: path.write_bytes(path.read_bytes()[:35]), "holds 2 records, expected 3"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "record 3 at byte 551 is cut off: 1 of 12"),
    ],
)
def test_lengths_that_do_not_fit_are_found_before_others_read_the_file(file, spoil, message):
    tfrecords.check_lengths(file, 3)
    spoil(file)
    with pytest.raises(InputError, match=f"some.tfrecord.*{message}"):
        tfrecords.check_lengths(file, 3)


def test_a_huge_length_allocates_nothing(file):
    length = struct.pack("<Q", 2**60)
    crc = google_crc32c.value(length)
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF  # as TFRecords have it
    file.write_bytes(length + struct.pack("<I", masked) + b"x")
    with pytest.raises(InputError, match="1152921504606846976 bytes announced"):
        list(tfrecords.read_records(file))
    with pytest.raises(InputError, match="1152921504606846976 bytes announced"):
        tfrecords.check_lengths(file, 1)


def test_a_write_that_fails_leaves_the_old_file(file):
    before = file.read_bytes()

    def broken():
        yield b"half"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        tfrecords.write_records(file, broken())
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_an_example_is_read_back_as_given():
    given = {"id": [b"a", b"b\0"], "row": np.array([[1, -2], [3, 4]]), "d_ap": np.array([0.1, np.nan], np.float32)}
    found = tfrecords.parse_example(tfrecords.make_example(given))
    assert found["id"] == given["id"] and found["row"].tolist() == [1, -2, 3, 4]
    np.testing.assert_array_equal(found["d_ap"], given["d_ap"])
    assert tfrecords.make_example(given) == tfrecords.make_example(dict(reversed(given.items())))
