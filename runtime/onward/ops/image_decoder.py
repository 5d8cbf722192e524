from __future__ import annotations

import io

import numpy as np

from onward.errors import ConfigError, ShapeError, UnsupportedError
from onward.graph import Array, Op, op

_LARGEST = 1 << 28
"""Pixels above are refused before memory is taken."""


@op("ImageDecoder", since=20)
class ImageDecoder(Op):
    """The pixels [H, W, C] of an encoded image, uint8; decoded by Pillow."""

    pixel_format: str = "RGB"

    def kernel(self, encoded_stream: Array) -> Array:
        try:
            import PIL.Image
        except ImportError as error:
            raise ConfigError("ImageDecoder needs Pillow: pip install 'onward[data]'") from error
        if self.pixel_format not in ("RGB", "BGR", "Grayscale"):
            raise UnsupportedError(f"pixel_format {self.pixel_format!r}: choose RGB, BGR or Grayscale")
        try:
            with PIL.Image.open(io.BytesIO(encoded_stream.tobytes())) as image:
                if image.width * image.height > _LARGEST:
                    raise ShapeError(f"an image of {image.width} x {image.height} pixels; {_LARGEST} at most")
                pixels = np.array(image.convert("L" if self.pixel_format == "Grayscale" else "RGB"))
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise ShapeError(f"encoded_stream is no image that can be decoded: {error}") from error
        if self.pixel_format == "Grayscale":
            return pixels[..., None]
        return pixels[..., ::-1] if self.pixel_format == "BGR" else pixels
