"""Rows of the corpus as one sees them on a page: a picture, a text, or a vector as strokes."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.corpus.corpus import Corpus

THUMBNAIL = 120  # pixels, the longer side
AS_IT_IS = 4096  # bytes of a picture that is shown as it is
TEXT = 240  # characters of a text
STROKES = 48  # of a vector


@dataclass(frozen=True, kw_only=True)
class View:
    """A row of the train split. kind: image, text or vector; drawn: what the template draws it from."""

    row: int
    id: str
    label: str
    kind: str
    drawn: dict[str, Any]

    @property
    def short_id(self) -> str:
        """Without the label, where that is the folder it is in."""
        return self.id.removeprefix(f"{self.label}/")


def look_up(corpus: Corpus, rows: Iterable[int]) -> dict[int, View]:
    """Views of rows of the train split, read from the corpus by position."""
    wanted = np.unique(np.fromiter(rows, np.int64))
    views = {}
    for row, example in zip(wanted.tolist(), corpus.split("train").examples(wanted), strict=True):
        kind = corpus.feature.kind
        payload = example[kind]
        if kind == "image":
            drawn = picture(payload[0])
        elif kind == "vector":
            drawn = strokes(payload)
        else:
            text = payload[0].decode(errors="replace")
            drawn = {"text": text if len(text) <= TEXT else text[:TEXT] + " …"}
        views[row] = View(
            row=row, id=example["id"][0].decode(), label=example["label"][0].decode(), kind=kind, drawn=drawn
        )
    return views


def picture(encoded: bytes) -> dict[str, Any]:
    """A PNG or JPEG as a data URI, made smaller if it is large. grain: so small that its pixels are to be seen."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
        (width, height), form = image.size, str(image.format)
        if len(encoded) > AS_IT_IS or max(width, height) > 2 * THUMBNAIL:
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            small: Image.Image = image
            if image.mode.startswith("I"):  # 16 bits a pixel
                small = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            buffer = io.BytesIO()
            small.convert("RGBA" if image.has_transparency_data else "RGB").save(buffer, "WEBP", quality=80)
            (width, height), form, encoded = small.size, "WEBP", buffer.getvalue()
    source = f"data:image/{form.lower()};base64,{base64.b64encode(encoded).decode()}"
    return {"src": source, "width": width, "height": height, "grain": max(width, height) <= 48}


def strokes(values: np.ndarray) -> dict[str, str]:
    """A vector as upright strokes, of a long one the means of STROKES parts: an SVG path in a field of 100 by 100."""
    values = np.asarray(values, np.float64)
    parts = np.array([part.mean() for part in np.array_split(values, min(STROKES, len(values)))])
    floor, reach = (96, 92) if parts.min() >= 0 else (50, 46)
    most = np.abs(parts).max() or 1.0
    x = (np.arange(len(parts)) + 0.5) * 100 / len(parts)
    path = "".join(f"M{a:.1f} {floor}V{floor - reach * v / most:.1f}" for a, v in zip(x, parts, strict=True))
    return {"path": path, "first": ", ".join(f"{v:.3g}" for v in values[:4])}
