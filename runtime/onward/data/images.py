"""Images from a folder with one sub-folder per class."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from onward.data._files import PathLike, ReadFiles, optional_module, read_in_turn, stem
from onward.data.class_folders import find_class_folders
from onward.data.dataset import Array, Dataset
from onward.data.hugging_face import refuse_splits
from onward.data.image_rows import has_image_rows, load_image_rows
from onward.errors import ConfigError, DataError, StorageError

__all__ = ["Fit", "fit_images", "load_image_folder", "read_image"]

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB"}

Fit = Literal["stretch", "crop", "pad"]


def load_image_folder(
    path: Any,
    image_size: int | tuple[int, int] = 224,
    *,
    channels: int = 3,
    raw: bool = False,
    fit: Fit = "stretch",
    skip_bad_files: bool = False,
    target: str | None = None,
    name: str | None = None,
    read_files: ReadFiles = read_in_turn,
) -> Dataset:
    """Every image in the sub-folders of `path`: input "image", float32 in [0, 1], [N, channels, H, W].

    With `raw` its pixels are as in the files: uint8 of the same shape, for a `Preparation` to divide by 255.

    The sub-folders in order of their names are the classes. An image is turned as its EXIF data says; 16 bits
    a channel become 8; what is transparent is put on white; it is converted to grey (channels=1) or RGB (3)
    and brought to `image_size`, a side or (H, W), with bilinear filtering. Hidden files are passed over, and
    files of other kinds, which `Dataset.notes` says. Needs pillow.

    fit: "stretch" changes the proportions. "crop" keeps them and cuts off what is over, on both sides alike.
        "pad" keeps them and puts black beside.
    skip_bad_files: leave out files that cannot be decoded, and count them in `Dataset.notes`.
    path: or a Hugging Face data set, the folder that its `save_to_disk` wrote, or a Parquet or Arrow file
        with a column of encoded images and one of labels, whose names of classes are taken over.
    target: the column of labels, where there are columns.
    read_files: decodes the files.

    A folder without images is no class, which `Dataset.notes` says.

    Raises DataError naming a file that cannot be decoded, and for no classes or images that lie deeper;
    ConfigError for a bad size or pillow missing.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height < 1 or width < 1 or channels not in _MODES:
        raise ConfigError(f"image_size {image_size!r} must be positive and channels {channels!r} 1 or 3")
    _require_fit(fit)
    pillow = optional_module("PIL.Image", "pillow", "reading images")
    read = functools.partial(_read, pillow, size=(height, width), channels=channels, raw=raw, fit=fit)
    empty = np.zeros((channels, height, width), dtype=np.uint8 if raw else np.float32)
    refuse_splits(path)
    if has_image_rows(path):
        return load_image_rows(path, read, empty, target=target, skip_bad_files=skip_bad_files, name=name)
    if target is not None:
        raise ConfigError(f"{path}: a folder of images has no columns: its sub-folders are the classes")
    found = find_class_folders(path, _SUFFIXES, "images", "images")
    files = found.files
    pixels = np.empty((len(files), *empty.shape), dtype=empty.dtype)
    labels: list[int] = []
    bad: list[DataError] = []
    decoded = read_files([file for _, file in files], read)
    for (label, _), image in zip(files, decoded, strict=True):
        if isinstance(image, DataError):
            if not skip_bad_files:
                raise DataError(f"{image}; repair it, or leave such files out with --skip-bad-files")
            bad.append(image)
            continue
        pixels[len(labels)] = image
        labels.append(label)
    for label, folder in enumerate(found.folders):
        if label not in labels:
            raise DataError(f"{folder}: no image of the class can be read")
    notes = list(found.notes)
    if bad:
        notes.append(f"{path}: {len(bad):,} of {len(files):,} files left out: {_first(bad)}")
    return Dataset(
        inputs={"image": pixels[: len(labels)]},
        targets=np.array(labels, dtype=np.int64),
        classes=found.classes,
        name=name if name is not None else stem(path),
        notes=tuple(notes),
    )


def _first(errors: Sequence[DataError]) -> str:
    return "; ".join(str(error) for error in errors[:3]) + ("; ..." if len(errors) > 3 else "")


def _require_fit(fit: str) -> None:
    if fit not in get_args(Fit):
        raise ConfigError(f"fit must be one of {', '.join(get_args(Fit))}, not {fit!r}")


def read_image(
    path: PathLike, size: tuple[int, int], channels: int = 3, *, raw: bool = False, fit: Fit = "stretch"
) -> Array:
    """One image file as `load_image_folder` reads it: float32 [channels, H, W] for a size (H, W), raw uint8.

    Raises DataError for a file that cannot be decoded, StorageError for one that is not there, ConfigError
    where pillow is missing.
    """
    if not Path(path).is_file():
        raise StorageError(f"{path}: no such file")
    _require_fit(fit)
    pillow = optional_module("PIL.Image", "pillow", "reading images")
    return _read(pillow, Path(path), size=size, channels=channels, raw=raw, fit=fit)


def fit_images(
    images: Array, size: tuple[int, int] | None, channels: int | None, fit: Fit = "stretch"
) -> Array:
    """Images that are in memory, uint8 [N, 1 or 3, H, W], brought to a size and to channels as files are.

    Raises ConfigError for a bad size, other channels than 1 and 3 on either side, or pillow missing.
    """
    own = images.shape[1:]
    height, width = own[1:] if size is None else size
    channels = own[0] if channels is None else channels
    if (channels, height, width) == own:
        return images
    if height < 1 or width < 1 or channels not in _MODES or own[0] not in _MODES:
        raise ConfigError(
            f"images of {own[0]} channels cannot have image_size {height} x {width} and {channels} channels: "
            "sizes are positive, channels 1 or 3"
        )
    _require_fit(fit)
    pillow = optional_module("PIL.Image", "pillow", "resizing images")
    found = np.empty((len(images), channels, height, width), np.uint8)
    for into, image in zip(found, images, strict=True):
        given = pillow.fromarray(image[0] if own[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        scaled = np.asarray(_scaled(given.convert(_MODES[channels]), (height, width), fit))
        into[...] = scaled if channels == 1 else scaled.transpose(2, 0, 1)
    return found


def _scaled(image: Any, size: tuple[int, int], fit: Fit) -> Any:
    """An image of pillow's at a size (H, W)."""
    pillow = optional_module("PIL.Image", "pillow", "resizing images")
    operations = optional_module("PIL.ImageOps", "pillow", "resizing images")
    target, filtering = size[::-1], pillow.Resampling.BILINEAR
    if fit == "crop":
        return operations.fit(image, target, filtering)
    if fit == "pad":
        return operations.pad(image, target, filtering)
    return image.resize(target, filtering)


def _read(
    pillow: Any,
    file: Path | io.BytesIO,
    where: str | None = None,
    *,
    size: tuple[int, int],
    channels: int,
    raw: bool,
    fit: Fit,
) -> Array:
    """One image as [C, H, W]. Pillow's decoders raise many types, none of which may escape."""
    where = str(file) if where is None else where
    operations = optional_module("PIL.ImageOps", "pillow", "reading images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(file) as image:
                upright = _eight_bits(pillow, where, operations.exif_transpose(image))
                plain = _opaque(pillow, upright).convert(_MODES[channels])
                scaled = _scaled(plain, size, fit)
    except DataError:
        raise
    except Exception as error:
        what = type(error).__name__ if isinstance(file, io.BytesIO) else f"{type(error).__name__}: {error}"
        raise DataError(f"{where}: the image cannot be decoded ({what})") from error
    pixels = np.asarray(scaled) if raw else np.asarray(scaled, dtype=np.float32) / np.float32(255)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _eight_bits(pillow: Any, where: str, image: Any) -> Any:
    """An image whose pixels are bytes."""
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{where}: {image.mode} pixels of {values.min():g} ... {values.max():g}; convert the image to 8 "
            "or 16 bits a channel"
        )
    return pillow.fromarray(np.round(values / 257).astype(np.uint8))


def _opaque(pillow: Any, image: Any) -> Any:
    """The image on white."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    layered = image.convert("RGBA")
    below = pillow.new("RGBA", layered.size, (255, 255, 255, 255))
    return pillow.alpha_composite(below, layered)
