"""Omniglot's background sets as one folder of images, as `images:DIR` takes it."""

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path


def merged(sources: Sequence[str], target: Path) -> Path:
    """Puts the alphabets of folders or zips side by side; those in several sources (Greek, Latin) once.

    The small background sets share alphabets: kept apart, a class of one would be an unseen class of the other.
    """
    for source in sources:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(source)
            if zipfile.is_zipfile(root):
                shutil.unpack_archive(root, scratch, "zip")
                root = Path(scratch)
            alphabets = {character.parent for character in root.rglob("character*") if character.is_dir()}
            if not alphabets:
                raise SystemExit(f"{source}: no alphabet with character folders; give OMNIGLOT's folder or zip")
            for alphabet in sorted(alphabets):
                if not (target / alphabet.name).exists():
                    shutil.copytree(alphabet, target / alphabet.name)
    return target
