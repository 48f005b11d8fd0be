"""An object store for tests: fake://, its objects in the directory FAKE_STORE, whatever process asks.

Like the real ones it knows no rename and no append, and a directory is there as long as an object's name begins with
it. An object appears when it is whole; but the FAKE_TEAR-th put of a process leaves half of it, and ends the process.
"""

import io
import os
import signal
from pathlib import Path
from urllib.parse import quote, unquote

from fsspec.spec import AbstractFileSystem
from upath import UPath


class FakePath(UPath):
    pass


class ObjectStore(AbstractFileSystem):
    protocol = "fake"
    puts = 0

    @classmethod
    def _strip_protocol(cls, path):
        return str(path).removeprefix("fake://").strip("/")

    @property
    def root(self):
        return Path(os.environ["FAKE_STORE"])

    def object(self, path):
        return self.root / quote(self._strip_protocol(path), safe="")

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path)
        found = {}
        for file in self.root.iterdir():
            name = unquote(file.name)
            if name == path or name.startswith(path + "/"):
                rest = name[len(path) + 1 :].split("/")
                inner = path if name == path else f"{path}/{rest[0]}"
                kind = "directory" if len(rest) > 1 else "file"
                size = 0 if kind == "directory" else file.stat().st_size
                found[inner] = {"name": inner, "size": size, "type": kind, "mtime": file.stat().st_mtime_ns}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def info(self, path, **kwargs):
        path = self._strip_protocol(path)
        for entry in self.ls(path):
            return entry if entry["name"] == path else {"name": path, "size": 0, "type": "directory"}

    def ukey(self, path):
        return str(self.info(path))

    def _open(self, path, mode="rb", **kwargs):
        if mode == "rb":
            try:
                return io.BytesIO(self.object(path).read_bytes())
            except FileNotFoundError:
                raise FileNotFoundError(path) from None
        assert mode == "wb", f"an object store does not open in mode {mode}"
        return Put(self, path)

    def rm_file(self, path):
        self.object(path).unlink()

    def rm(self, path, recursive=False, maxdepth=None):
        for name in self.find(path):
            self.rm_file(name)

    def cp_file(self, *args, **kwargs):
        raise NotImplementedError("our code copies and renames nothing in the store")

    mv = cp_file


class Put(io.BytesIO):
    def __init__(self, store, path):
        super().__init__()
        self.store, self.path = store, path

    def close(self):
        if not self.closed:
            target, data = self.store.object(self.path), self.getvalue()
            ObjectStore.puts += 1
            if str(ObjectStore.puts) == os.environ.get("FAKE_TEAR"):
                target.write_bytes(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            whole = self.store.root.parent / f"put-{os.getpid()}-{id(self)}"
            whole.write_bytes(data)
            os.replace(whole, target)
        super().close()
