"""Python imports this at its start, in every process that has this directory on its path."""

import fsspec
from fake_store import FakePath, ObjectStore
from upath.registry import register_implementation

fsspec.register_implementation("fake", ObjectStore)
register_implementation("fake", FakePath)
