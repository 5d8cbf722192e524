"""Images from a folder with one sub-folder per class."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from onward.data._files import PathLike, optional_module, stem
from onward.data.dataset import Array, Dataset
from onward.errors import ConfigError, DataError, StorageError

__all__ = ["load_image_folder", "read_image"]

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB"}


def load_image_folder(
    path: PathLike,
    image_size: int | tuple[int, int] = 224,
    *,
    channels: int = 3,
    raw: bool = False,
    name: str | None = None,
) -> Dataset:
    """Every image in the sub-folders of `path`: input "image", float32 in [0, 1], [N, channels, H, W].

    With `raw` its pixels are as in the files: uint8 of the same shape, for a `Preparation` to divide by 255.

    The sub-folders in order of their names are the classes. An image is turned as its EXIF data says,
    converted to grey (channels=1) or RGB (3), and stretched to `image_size`, a side or (H, W), with bilinear
    filtering. Hidden files are passed over. Needs pillow.

    Raises DataError naming a file that is not an image or cannot be decoded, and for no classes or a class
    without images; ConfigError for a bad size or pillow missing.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height < 1 or width < 1 or channels not in _MODES:
        raise ConfigError(f"image_size {image_size!r} must be positive and channels {channels!r} 1 or 3")
    root = Path(path)
    if not root.is_dir():
        raise StorageError(f"{path}: no such folder")
    pillow = optional_module("PIL.Image", "pillow", "reading images")
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise DataError(f"{path}: no sub-folders; put the images of each class into a folder of its own")
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(f for f in folder.iterdir() if not f.name.startswith("."))
        for file in found:
            if file.is_dir() or file.suffix.lower() not in _SUFFIXES:
                raise DataError(f"{file}: not an image file; a class folder holds only {' '.join(_SUFFIXES)}")
        if not found:
            raise DataError(f"{folder}: the class folder holds no images")
        files += found
        labels += [label] * len(found)
    images = np.empty((len(files), channels, height, width), dtype=np.uint8 if raw else np.float32)
    for row, file in enumerate(files):
        images[row] = _read(pillow, file, (height, width), channels, raw)
    return Dataset(
        inputs={"image": images},
        targets=np.array(labels, dtype=np.int64),
        classes=tuple(folder.name for folder in folders),
        name=name if name is not None else stem(path),
    )


def read_image(path: PathLike, size: tuple[int, int], channels: int = 3, *, raw: bool = False) -> Array:
    """One image file as `load_image_folder` reads it: float32 [channels, H, W] for a size (H, W), raw uint8.

    Raises DataError for a file that cannot be decoded, StorageError for one that is not there, ConfigError
    where pillow is missing.
    """
    if not Path(path).is_file():
        raise StorageError(f"{path}: no such file")
    return _read(optional_module("PIL.Image", "pillow", "reading images"), Path(path), size, channels, raw)


def _read(pillow: Any, file: Path, size: tuple[int, int], channels: int, raw: bool) -> Array:
    """One image as [C, H, W]. Pillow's decoders raise many types, none of which may escape."""
    operations = optional_module("PIL.ImageOps", "pillow", "reading images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(file) as image:
                if image.mode[0] in "IF":
                    raise DataError(f"{file}: {image.mode} pixels; convert the image to 8 bits a channel")
                upright = operations.exif_transpose(image).convert(_MODES[channels])
                scaled = upright.resize(size[::-1], pillow.Resampling.BILINEAR)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file}: the image cannot be decoded ({type(error).__name__}: {error})") from error
    pixels = np.asarray(scaled) if raw else np.asarray(scaled, dtype=np.float32) / np.float32(255)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
