"""`digits`: scikit-learn's 1,797 digits, to try things out."""

from collections.abc import Iterator

import numpy as np
from sklearn.datasets import load_digits

from pipeline.corpus.sources.encoding import encode_png
from pipeline.corpus.sources.source import Example, Source
from pipeline.errors import InputError


def open_source(argument: str) -> Source:
    if argument:
        raise InputError(f"the source is `digits` alone; found `digits:{argument}`")
    return Source(kind="image", files=[], parts=lambda: ["digits"], read=read)


def read(part: str) -> Iterator[Example]:
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0 to 16 there
    for number, (image, label) in enumerate(zip(images, digits.target, strict=True)):
        yield Example(id=f"{number:04d}", label=str(label), payload=encode_png(image), shape=(8, 8, 1))
