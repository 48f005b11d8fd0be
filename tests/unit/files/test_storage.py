"""Files on a disk and in a store: all of it or nothing, and whose leftovers go."""

import errno
import io
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import InputError
from pipeline.files import storage

DEAD = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
DEAD_PROCESS = int(DEAD.stdout)


def leftover(process=DEAD_PROCESS, host=storage.HOST, end=".tmp.npy"):
    return f".x.{host}.{process}.0123abcd{end}"


def test_a_reader_sees_all_of_a_file_or_nothing(tmp_path):
    path, seen = tmp_path / "new" / "a.npy", []

    def write(temporary):
        np.save(temporary, np.arange(3))
        seen.extend([temporary.suffix, path.exists(), storage.TEMPORARY.fullmatch(temporary.name) is not None])
        return "written"

    assert storage.write_atomically(path, write) == "written"
    assert seen == [".npy", False, True] and storage.names(path.parent) == ["a.npy"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device: '.*/a.txt'"):
        storage.write_atomically(path, write)
    assert path.read_text() == "old" and storage.names(tmp_path) == ["a.txt"]


def test_what_a_dead_process_of_ours_left_goes_and_nothing_else(tmp_path):
    (tmp_path / "target").write_bytes(b"")
    foreign = [
        leftover(os.getpid()), leftover(host="another-machine"), leftover(process=10**20), leftover(end=".tmp.a.b"),
        ".x.tmp", ".a.1234.deadbeef.tmp.csv", "x.tmp", f".{storage.HOST}.{DEAD_PROCESS}.0123abcd.tmp", ".tmp", "a.npy",
    ]  # fmt: skip
    for name in foreign:
        (tmp_path / name).write_bytes(b"theirs")
    (tmp_path / leftover(end=".tmp.folder")).mkdir()
    (tmp_path / leftover(end=".tmp.link")).symlink_to(tmp_path / "target")
    (tmp_path / leftover(end=".tmp.dangling")).symlink_to(tmp_path / "nowhere")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / leftover()).write_bytes(b"of a folder that is not asked for")
    before = sorted(storage.names(tmp_path))
    for end in (".tmp", ".tmp.npy", ".tmp.tfrecord"):
        (tmp_path / leftover(end=end)).write_bytes(b"half")
    storage.remove_leftovers(tmp_path)
    assert sorted(storage.names(tmp_path)) == before
    assert storage.names(tmp_path / "below") == [leftover()]


def test_a_folder_that_is_not_there_has_no_names_and_no_leftovers(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "file", tmp_path / "file" / "below"):
        assert storage.names(path) == []
        storage.remove_leftovers(path)


def test_removing_raises_what_the_disk_refuses(tmp_path):
    storage.remove(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with pytest.raises(OSError, match="symbolic link"):
        storage.remove(tmp_path / "link")
    with pytest.raises(NotADirectoryError):
        storage.remove(tmp_path / "folder" / "a")
    assert (tmp_path / "folder" / "a").read_text() == "a"
    storage.remove(tmp_path / "folder")
    assert storage.names(tmp_path) == ["link"]


def test_finished_files_are_counted(tmp_path):
    for name in ("a.npz", "b.npz", leftover(os.getpid(), end=".tmp.npz"), "c.npy"):
        (tmp_path / name).write_bytes(b"")
    assert storage.count_files(tmp_path, ".npz") == 2 and storage.count_files(tmp_path / "nowhere", ".npz") == 0


def test_arrays_come_back_and_those_that_are_none_are_left_out(tmp_path):
    storage.save_arrays(tmp_path / "a.npz", row=np.arange(3), group=None)
    assert storage.read_arrays(tmp_path / "a.npz")["row"].tolist() == [0, 1, 2]
    assert storage.read_arrays(tmp_path / "a.npz").keys() == {"row"}


def announced(shape, descr="<i8"):
    """48 bytes behind a header that says so."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue() + bytes(48)


@pytest.mark.parametrize(
    "content",
    [
        announced((3, 2))[:-1], announced((3, 2))[:60], b"", announced((3, 2)) + b"x", announced((3, 1)),
        announced((9,)), announced((3, 2), "<i4"), announced((2**45,)), announced((2**62, 4)), announced((-3, -2)),
        announced((6,), "|O"), announced((2**61, 8, 0)), b"PK\3\4" + bytes(50),
        announced((6,)).replace(b"NUMPY\1", b"NUMPY\3"),
    ],
)
def test_an_array_that_is_not_as_long_as_its_header_says_is_refused(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(announced((3, 2)))
    assert storage.open_array(path).shape == (3, 2)
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(InputError, match="a.npy is damaged: .* Restore it, or remove it"):
        storage.open_array(path)


def test_any_flipped_bit_of_arrays_is_found_or_without_effect(tmp_path):
    path, expected = tmp_path / "a.npz", {"key": np.array("digest"), "a/0": np.arange(6.0).reshape(2, 3)}
    storage.save_arrays(path, **expected)
    before, refused = path.read_bytes(), 0
    for bit in range(8 * len(before)):
        data = bytearray(before)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = storage.read_arrays(path)
        except InputError as error:
            assert "a.npz is damaged" in str(error)
            refused += 1
            continue
        assert found.keys() <= expected.keys()  # one flip hides a member: who reads must miss it
        assert all(found[name].tobytes() == expected[name].tobytes() for name in found)
    assert refused > 8 * sum(value.nbytes for value in expected.values())


def test_arrays_that_are_compressed_are_none_of_ours(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6))
    with pytest.raises(InputError, match="a.npz is damaged: a.npy is compressed, or announced outside the file"):
        storage.read_arrays(tmp_path / "a.npz")


def test_a_file_with_its_checksum(tmp_path):
    path = tmp_path / "a.bin"
    assert storage.is_as_written(path) is None
    storage.write_checked(path, lambda temporary: temporary.write_bytes(b"abc"))
    assert storage.is_as_written(path) and storage.names(tmp_path).sort() == ["a.bin", "a.sha256"].sort()
    path.write_bytes(b"abd")
    assert storage.is_as_written(path) is False
    (tmp_path / "a.sha256").write_bytes(b"\xff")
    assert storage.is_as_written(path) is False
    with pytest.raises(RuntimeError):
        storage.write_checked(path, lambda temporary: [][0] if not temporary else (_ for _ in ()).throw(RuntimeError))
    assert storage.is_as_written(path) is None, "a write that was cut off leaves no checksum of another file"


@pytest.fixture
def store():
    return storage.location(f"memory://storage-{os.getpid()}-{time.monotonic_ns()}")


def test_an_array_is_read_as_it_is_now(store, tmp_path):
    for place in (store, tmp_path):
        for value in (1, 2):
            storage.save_array(place / "a.npy", np.full(3, value))
            assert storage.open_array(place / "a.npy").tolist() == [value] * 3


def test_a_store_is_written_listed_read_by_range_and_removed(store):
    storage.write_atomically(store / "run" / "a.bin", lambda temporary: temporary.write_bytes(b"0123456789"))
    assert storage.names(store / "run") == ["a.bin"] and storage.names(store / "other") == []
    assert storage.read_ranges(store / "run" / "a.bin", [1, 7], [3, 10]) == [b"12", b"789"]
    with storage.fetched(store / "run", ["a.bin"]) as here:
        assert (here / "a.bin").read_bytes() == b"0123456789"
    storage.remove(store / "run")
    storage.remove(store / "run")
    assert storage.names(store / "run") == [] and not here.exists()


class SlowStore(MemoryFileSystem):
    """Where a download takes so long that others ask for the same file meanwhile."""

    protocol = "slowmemory"

    def get_file(self, *arguments, **options):
        time.sleep(0.05)
        return super().get_file(*arguments, **options)


@pytest.mark.filterwarnings("ignore:UPath .slowmemory.")
def test_threads_that_open_one_remote_array_share_a_copy():
    """Each made a copy of its own, and all but one were removed before they were read."""
    fsspec.register_implementation("slowmemory", SlowStore, clobber=True)
    path = storage.location(f"slowmemory://threads-{os.getpid()}/a.npy")
    storage.save_array(path, np.arange(10))
    with ThreadPoolExecutor(3) as pool:
        assert [int(array.sum()) for array in pool.map(storage.open_array, [path] * 3)] == [45] * 3


@pytest.mark.parametrize("text", ["nothing://bucket/run", "hdfs2://x"])
def test_a_protocol_that_nobody_knows_is_refused(text):
    with pytest.raises(InputError, match=f"{text}.*extras gs and s3"):
        storage.location(text)
