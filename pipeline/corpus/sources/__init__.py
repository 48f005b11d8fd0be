"""Where a corpus comes from: one module a kind of source, each with `open_source` and `read`.

A module is imported when its source is opened, since most need TensorFlow.
"""

import difflib
import importlib

from pipeline.corpus.sources.source import Source
from pipeline.errors import InputError

SOURCES = {  # what is given to --source, up to the colon the name of a module here; what it reads
    "digits": "scikit-learn's 1,797 digits",
    "images:DIR": "one folder a class, PNG or JPEG; nested folders make its name",
    "csv:FILE,label=COLUMN": "text=, path= (of images) or vector=, label=, id=, group= COLUMN",
    "parquet:FILE,label=COLUMN": "the same, or image= (encoded bytes)",
    "tfrecord:GLOB,label=FEATURE": "image=, text= or vector=, label=, id=, group= FEATURE",
    "tfds:NAME,label=FEATURE": "prepared on disk by tensorflow-datasets; data_dir=",
    "arrays:FILE.npz": "images or vectors, labels, and if you like ids, groups",
    "fashion_mnist:DIR": "the four IDX files",
}


def open_source(text: str) -> Source:
    """text: as it is given to `--source`.

    Raises:
      InputError: if there is no such source, or what its argument names is not there or not as it must be.
    """
    name, _, argument = text.partition(":")
    names = [usage.partition(":")[0] for usage in SOURCES]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"no source is called {name!r}; {hint}There are {', '.join(SOURCES)}.")
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ImportError as error:
        raise InputError(f"{name}: {error}. The extra {name} brings it: pip install .[{name}]") from None
    source: Source = module.open_source(argument)
    return source
