"""Encoded images: PNG and JPEG."""

import io
import re

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 50_000_000  # larger images are refused before they are decoded


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [height, width] or [height, width, 1 or 3] as PNG."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def image_shape(encoded: bytes) -> tuple[int, int, int]:
    """(height, width, channels) of a PNG or JPEG that TensorFlow can decode.

    Raises:
      ValueError: saying why it cannot. The header is read first, so a bomb is never unpacked.
    """
    if not encoded:
        raise ValueError("the file is empty")
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            (width, height), channels = image.size, 1 if image.mode in ("1", "L", "LA", "I", "I;16") else 3
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    except UnidentifiedImageError:
        raise ValueError("not a PNG or JPEG") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"not a PNG or JPEG: {error}") from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
    try:
        tf.io.decode_image(encoded, channels=channels, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        reason = re.sub(r"\{\{.*?\}\} ?", "", error.message)[:200]
        raise ValueError(f"does not decode: {reason}") from None
    return height, width, channels
