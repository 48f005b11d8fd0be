"""Files of a run directory, on a disk or wherever fsspec reaches: gs://, s3://, hdfs:// and others.

A path is a pathlib.Path, or a UPath (https://github.com/fsspec/universal_pathlib), which reads the same. Most of
what differs is here. On an object store nothing is renamed: a file is filled on the local disk and put as a whole.
If a put can be cut off, what is left is a file without its checksum or its manifest, which readers leave alone, or a
manifest that they name as damaged.
"""

import atexit
import functools
import hashlib
import math
import os
import re
import shutil
import socket
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.errors import InputError

MEND = "Restore it, or remove it and run the same command again."
KEPT_COPIES = 256  # of remote files, per process
HOST = re.sub(r"\W", "-", socket.gethostname())
TEMPORARY = re.compile(r"\..+\.(?P<host>[\w-]+)\.(?P<process>\d{1,9})\.[0-9a-f]{8}\.tmp(\.\w+)?")


def location(text: str | Path) -> Path:
    """A path as a user gives it: a local one, or a URL."""
    if not isinstance(text, str):
        return text
    if "://" not in text:
        return Path(text)
    try:
        from upath import UPath

        # Other processes write there too: what a directory holds is asked anew each time.
        path = UPath(text, use_listings_cache=False)
        path.fs  # noqa: B018  imports what the protocol needs
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{text}: {error}. The extras gs and s3 bring what those need: pip install .[s3]"
        ) from None
    return path  # type: ignore[return-value]


def is_local(path: Path) -> bool:
    return isinstance(path, Path)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Any:
    """Lets `write` fill a temporary local file and gives it its name: readers see all of it or nothing.

    The bytes are on the disk before the name is, so that a power failure cannot leave a name without them.
    """
    if not is_local(path):
        with tempfile.TemporaryDirectory() as scratch:
            temporary = Path(scratch, path.name)
            result = write(temporary)
            _fs(path).put_file(str(temporary), _key(path))
        return result
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: Keras and NumPy look at it.
    name = f".{path.stem}.{HOST}.{os.getpid()}.{os.urandom(4).hex()}.tmp{path.suffix}"
    temporary = path.with_name(name)
    try:
        result = write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:  # a full disk names no file
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    return result


def copy(source: Path, target: Path) -> None:
    write_atomically(target, lambda temporary: shutil.copyfile(local_copy(source), temporary))


def write_checked(path: Path, write: Callable[[Path], Any], note: str = "") -> None:
    """The same, and the file's SHA-256 in a file beside it: removed first, written last, so that it fits or is gone.

    note: what `note_of` gives back, a line.
    """

    def write_and_sum(temporary: Path) -> str:
        write(temporary)
        return sha256_of(temporary)

    checksum = path.with_suffix(".sha256")
    checksum.unlink(missing_ok=True)
    found = write_atomically(path, write_and_sum)
    write_atomically(checksum, lambda temporary: temporary.write_text(f"{found} {note}".rstrip()))


def is_as_written(path: Path) -> bool | None:
    """Whether a file is what `write_checked` wrote; None if nothing beside it tells."""
    checksum = path.with_suffix(".sha256")
    try:
        expected = checksum.read_bytes().split()
    except FileNotFoundError:
        return None
    return expected[:1] == [sha256_of(local_copy(path)).encode()]


def note_of(path: Path) -> str:
    """What `write_checked` noted of a file."""
    return path.with_suffix(".sha256").read_text(encoding="utf-8", errors="replace").partition(" ")[2]


def check_writable(directory: Path) -> None:
    """Raises InputError if a directory is there and this user may not write into it."""
    if is_local(directory) and directory.exists() and not os.access(directory, os.W_OK):
        raise InputError(
            f"{directory} is read-only for this user. Make it writable, or copy the run directory to where you may "
            f"write."
        )


def remove_leftovers(directory: Path) -> None:
    """Removes what processes of this machine that are dead left half written in a directory, not in those below it."""
    for name in names(directory):
        found = TEMPORARY.fullmatch(name)
        path = directory / name
        if not found or found["host"] != HOST or path.is_symlink() or not path.is_file():
            continue
        if not psutil.pid_exists(int(found["process"])):
            path.unlink(missing_ok=True)


copying = threading.RLock()  # held while a copy is made, and by who must not have it dropped by another thread


def local_copy(path: Path) -> Path:
    """The file itself, or a copy on the local disk: for what can be mapped, or is read by others' code."""
    if is_local(path):
        return path
    with copying:
        return Path(_copies(os.getpid(), str(path), _fs(path).ukey(_key(path)), path))


# A path hashes by its text, so that the version (ukey) tells one file by that name from the next.
@functools.lru_cache(maxsize=KEPT_COPIES)
def _copies(process: int, name: str, version: str, path: Path) -> "_Copy":
    return _Copy(path)


class _Copy(os.PathLike[str]):
    """A downloaded file that goes when nobody remembers it. What is mapped of it stays readable."""

    def __init__(self, path: Path):
        self._directory = tempfile.mkdtemp()
        self._remove = functools.partial(shutil.rmtree, self._directory, ignore_errors=True)
        atexit.register(self._remove)
        self._path = os.path.join(self._directory, path.name)
        _fs(path).get_file(_key(path), self._path)

    def __fspath__(self) -> str:
        return self._path

    def __del__(self) -> None:
        atexit.unregister(self._remove)
        self._remove()


def read_ranges(path: Path, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
    """Bytes of a remote file."""
    parts: list[bytes] = _fs(path).cat_ranges([_key(path)] * len(starts), list(starts), list(ends))
    return parts


def remove(path: Path) -> None:
    """Removes a directory with all that is in it, if it is there. Raises OSError where that is refused."""
    if not path.exists():
        return
    _open_array.cache_clear()  # what is mapped keeps its place on the disk
    if is_local(path):
        shutil.rmtree(path)
    else:
        _fs(path).rm(_key(path), recursive=True)


def names(directory: Path) -> list[str]:
    """What is in a directory; nothing if it is not there."""
    try:
        return [path.name for path in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def count_files(directory: Path, suffix: str) -> int:
    """How many finished files with that ending a directory holds; temporary names begin with a dot."""
    return sum(name.endswith(suffix) and not name.startswith(".") for name in names(directory))


@contextmanager
def fetched(directory: Path, files: Sequence[str]) -> Iterator[Path]:
    """A local directory that holds these files, while inside."""
    if is_local(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name in files:
            _fs(directory).get_file(_key(directory / name), os.path.join(scratch, name))
        yield Path(scratch)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- Arrays. ----


def save_array(path: Path, array: np.ndarray) -> None:
    write_atomically(path, lambda temporary: np.save(temporary, array))


def open_array(path: Path) -> np.ndarray:
    """A .npy file of ours, mapped: only what is looked at is read. Raises InputError if it is not as long as its header
    says, or no array."""
    with copying:
        local = local_copy(path)
        return _open_array(local, local.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _open_array(path: Path, modified: int) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            _check_header(file, os.fstat(file.fileno()).st_size)
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged: {error}. {MEND}") from None
    return array


HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}  # as we write


def _check_header(file: Any, size: int) -> None:
    """Raises ValueError unless a .npy file of `size` bytes holds the array that its header announces."""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"version {version} of the format .npy, expected one of {', '.join(map(str, HEADERS))}")
    shape, _, dtype = HEADERS[version](file)
    if min(shape, default=0) < 0 or file.tell() + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"its header announces {dtype} {list(shape)}, and it has {size:,} bytes")


def save_arrays(path: Path, **arrays: np.ndarray | None) -> None:
    """An .npz file of the arrays that are not None."""
    found: dict[str, Any] = {name: array for name, array in arrays.items() if array is not None}
    write_atomically(path, lambda temporary: np.savez(temporary, **found))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an .npz file of ours. Raises InputError if it is damaged: a zip has a checksum of each member,
    which is looked at when all of the member is read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    inside = 0 <= member.header_offset < size and member.file_size <= size
                    if member.compress_type != zipfile.ZIP_STORED or not inside:
                        raise ValueError(f"{member.filename} is compressed, or announced outside the file")
                    with archive.open(member) as content:
                        _check_header(content, member.file_size)
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged: {error}. {MEND}") from None


def _fs(path: Any) -> Any:
    return path.fs


def _key(path: Any) -> str:
    return str(path.path)
