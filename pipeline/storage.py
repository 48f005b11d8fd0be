"""Files of a run directory, on a disk or wherever fsspec reaches: gs://, s3://, hdfs:// and others.

A path is a pathlib.Path, or a UPath (https://github.com/fsspec/universal_pathlib), which reads the same. Most of
what differs is here. On an object store nothing is renamed: a file is filled on the local disk and put as a whole.
If a put can be cut off, what is left is a file without its checksum or its manifest, which readers leave alone.
"""

import atexit
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEPT_COPIES = 256  # of remote files, per process


class InputError(Exception):
    """Something a user gave is wrong. The message says what was found, where, and what to do."""


def location(text: str) -> Path:
    """A path as it is given to a command: a local one, or a URL."""
    if "://" not in text:
        return Path(text)
    try:
        from upath import UPath

        # Other processes write there too: what a directory holds is asked anew each time.
        path = UPath(text, use_listings_cache=False)
        path.fs  # noqa: B018  imports what the protocol needs
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{text}: {error}. The extras gs, s3 and hdfs bring what those need: pip install .[s3]"
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
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{os.urandom(4).hex()}.tmp{path.suffix}")
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
    """Removes a directory with all that is in it, if it is there."""
    if is_local(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        _fs(path).rm(_key(path), recursive=True)


def names(directory: Path) -> list[str]:
    """What is in a directory; nothing if it is not there."""
    try:
        return [path.name for path in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


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


def scratch_in(run_dir: Path) -> Path | None:
    """Where temporary directories go: into the run directory, or for a remote one to the system's place for them."""
    return run_dir if is_local(run_dir) else None


def _fs(path: Any) -> Any:
    return path.fs


def _key(path: Any) -> str:
    return str(path.path)
