"""JSON with types: each kind of manifest is a frozen dataclass with a FORMAT, and one of another format is refused.

A reader trusts a manifest, never a directory listing: manifests are written last, and name every file with its size and
checksum. Each has a checksum of itself too.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import msgspec

from pipeline.errors import InputError
from pipeline.files import storage


class Manifest(Protocol):
    """A dataclass whose fields msgspec can write as JSON (https://jcristharif.com/msgspec/supported-types.html)."""

    FORMAT: ClassVar[str]


M = TypeVar("M", bound=Manifest)
CHECKSUM = "checksum"


def write(path: Path, manifest: Manifest) -> None:
    told = {"format": manifest.FORMAT, **msgspec.to_builtins(manifest)}
    value = msgspec.json.decode(msgspec.json.encode(told))  # as it is read: JSON has no NaN
    write_json(path, {"format": manifest.FORMAT, CHECKSUM: _checksum(value), **value})  # its line can be removed


def read(path: Path, kind: type[M], *, again: str = "Make it again.", **place: Any) -> M:
    """A manifest. place: fields that say where it belongs, as `round=3`; one that has None there fits everywhere.
    again: what to do about one of another format.

    Raises:
      InputError: if the file is no JSON, of another format, not as it was written, of another place, or if a field is
        missing or of another type. Without a checksum, as one is that a user wrote or changed, it is taken as it is.
    """
    try:
        value = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        remedy = "Restore it, or else make what is in its directory again."
        raise InputError(f"{path} is not a manifest: {error}. {remedy}") from None
    found = value.get("format") if isinstance(value, dict) else None
    if found != kind.FORMAT:
        raise InputError(f"{path} has format {found!r}, expected {kind.FORMAT!r}. {again}")
    checksum = value.pop(CHECKSUM, None)
    if checksum not in (None, _checksum(value)):
        raise InputError(
            f"{path} was changed since it was written: its {CHECKSUM} does not fit. Restore the file; or, if the "
            f"change is meant, remove its line {CHECKSUM}."
        )
    try:
        manifest = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {error}. Restore the file, or remove its directory and make it again.") from None
    for name, expected in place.items():
        if getattr(manifest, name) not in (None, expected):
            found = getattr(manifest, name)
            raise InputError(f"{path} is of {name} {found!r}, expected {expected!r}. Put the right file back.")
    return manifest


def read_if_there(path: Path, kind: type[M], **place: Any) -> M | None:
    return read(path, kind, **place) if path.exists() else None


def write_json(path: Path, value: Any) -> None:
    text = msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
    storage.write_atomically(path, lambda temporary: temporary.write_bytes(text))


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    encode = msgspec.json.Encoder().encode

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.writelines(encode(value) + b"\n" for value in values)

    storage.write_atomically(path, write)


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def sha256_of_json(value: Any) -> str:
    plain = msgspec.to_builtins(value)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file beside its manifest."""

    file: str
    records: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        check_name(self.file)

    @classmethod
    def of(cls, path: Path, records: int) -> "Shard":
        """The entry of a file that is there."""
        return cls(file=path.name, records=records, bytes=path.stat().st_size, sha256=storage.sha256_of(path))


def check_name(name: str) -> None:
    """Raises ValueError for a name that could lead out of its folder."""
    if not name or name in (".", "..") or Path(name).name != name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file in the manifest's own folder")


def check_file(path: Path, size: int, checksum: str, manifest: Path) -> None:
    """Compares a file's size and SHA-256 with what a manifest says.

    Raises:
      InputError: naming the file, the manifest and both checksums.
    """
    if not path.exists():
        raise InputError(f"{path} is missing, {manifest} lists it. Restore it, or make {path.parent} again.")
    found, found_checksum = path.stat().st_size, storage.sha256_of(path)
    if (found, found_checksum) != (size, checksum):
        raise InputError(
            f"{path} is not what {manifest} lists: {found} bytes, SHA-256 {found_checksum[:12]}, expected "
            f"{size} bytes, {checksum[:12]}. Restore it, or make {path.parent} again."
        )


def check_shard(manifest: Path, shard: Shard) -> None:
    check_file(manifest.parent / shard.file, shard.bytes, shard.sha256, manifest)
