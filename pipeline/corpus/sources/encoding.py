"""Encoded images: whatever Pillow reads, as a person sees it."""

import io
import re
import warnings
from typing import BinaryIO

import numpy as np
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # larger images are refused before they are decoded
STRIP = 1 << 20  # pixels that are converted at a time
TURNED = range(2, 9)  # EXIF's orientations but the upright one
# PNG or JPEG; (height, width, channels); of 16 bits a pixel how many the brightest uses, None of 8.
EncodedImage = tuple[bytes, tuple[int, int, int], int | None]


def encode_png(image: np.ndarray, level: int = -1) -> bytes:
    """uint8 [height, width] or [height, width, 1 or 3], or uint16 [height, width], as PNG."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def read_image(file: BinaryIO) -> EncodedImage:
    """An image turned as its EXIF says, on white where it is transparent, gray or RGB.

    Its bytes are the file's own if they are a PNG or JPEG that TensorFlow decodes to that, a PNG otherwise.

    Raises:
      ValueError: saying why it is no image. The header is read first, so a bomb is never unpacked.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):  # MAX_PIXELS decides
            image: Image.Image = Image.open(file)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}. Make it smaller")
        plain = image.mode in ("L", "RGB") and image.getexif().get(ExifTags.Base.Orientation) not in TURNED
        form, seen = image.format, _seen(image)
        del image  # as much memory again
    except Image.DecompressionBombError:  # of twice what Pillow warns of
        raise ValueError(f"more than {MAX_PIXELS:,} pixels. Make it smaller") from None
    except UnidentifiedImageError:
        raise ValueError("no image that Pillow reads" if file.seek(0, io.SEEK_END) else "the file is empty") from None
    except Exception as error:  # a damaged file may make a reader of Pillow fail with any
        raise ValueError(f"cannot be shown: {error or type(error).__name__}") from None
    shape = (*seen.shape, 1)[:3]
    bits = int(seen.max()).bit_length() if seen.dtype == np.uint16 else None
    if form == "PNG" or (form in ("JPEG", "MPO") and plain):  # an MPO is a JPEG with more behind it
        file.seek(0)
        encoded = file.read()
        decoded = _decoded(encoded, shape[2], seen.dtype)
        if form != "PNG" or np.array_equal(decoded, seen.reshape(shape)):  # of a JPEG the last bits may differ
            return encoded, shape, bits
    return encode_png(seen, level=1), shape, bits  # of 12 megapixels 0.6 s, with the usual level 2.5 s


def _seen(image: Image.Image) -> np.ndarray:
    """uint8 [height, width] or [height, width, 3]; uint16 [height, width] of a gray image of 16 bits."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels have 32 bits, and nothing says which is white. Save it with 8 or 16")
        return values.astype(np.uint16)
    image.load()
    gray, rows = image.mode in ("1", "L", "LA"), max(1, STRIP // image.width)
    seen = np.empty((image.height, image.width) if gray else (image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):  # in strips: each step makes a copy
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        seen[top : top + rows] = np.asarray(strip.convert("L" if gray else "RGB"))
    return seen


def _decoded(encoded: bytes, channels: int, dtype: np.dtype) -> np.ndarray:
    try:
        image = tf.io.decode_image(encoded, channels, tf.as_dtype(dtype), expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        reason = re.sub(r"\{\{.*?\}\} ?", "", error.message)[:200]
        raise ValueError(f"does not decode: {reason}") from None
    return np.asarray(image)


def as_8_bits(encoded: bytes, bits: int) -> bytes:
    """A PNG of 16 bits a pixel, of which `bits` are used, as one of 8: 2 ** bits - 1 and what is above become 255."""
    with Image.open(io.BytesIO(encoded)) as image:
        return encode_png(np.minimum(np.asarray(image) >> max(0, bits - 8), 255).astype(np.uint8))
