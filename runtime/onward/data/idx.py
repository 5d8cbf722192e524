"""The IDX format of the MNIST family (http://yann.lecun.com/exdb/mnist, "File formats"), gzip or plain.

Two zero bytes, a byte for the element type, a byte for the number of dimensions, each dimension as a
big-endian 32-bit integer, then the elements, big-endian, last dimension fastest.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onward.data._files import PathLike, open_binary, stem
from onward.data.dataset import Array, Dataset
from onward.data.images import Fit, fit_images
from onward.data.split import stratified_sample
from onward.errors import ConfigError, DataError, StorageError

__all__ = ["load_idx", "load_idx_folder", "read_idx"]

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_TRAIN_PREFIXES = ("train",)
_TEST_PREFIXES = ("t10k", "test")
_READ_BYTES = 1 << 24
_LARGEST = 8 << 30
"""Bytes of pixels that images are brought to another size in."""


def read_idx(path: PathLike) -> Array:
    """The array in an IDX file, in native byte order.

    Raises DataError for a wrong magic number, an unknown element type, and fewer or more bytes than the
    header says; StorageError for a file that cannot be opened.
    """
    with open_binary(path) as file:
        magic = file.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or magic[3] == 0:
            raise DataError(
                f"{path}: not an IDX file: it starts with {magic.hex() or 'nothing'}, where 0000, an element "
                f"type ({', '.join(f'{code:02x}' for code in _DTYPES)}) and a number of dimensions are due"
            )
        header = file.read(4 * magic[3])
        if len(header) < 4 * magic[3]:
            raise DataError(f"{path}: truncated in the header, which announces {magic[3]} dimensions")
        shape = struct.unpack(f">{magic[3]}I", header)
        dtype = np.dtype(_DTYPES[magic[2]])
        size = math.prod(shape) * dtype.itemsize
        data = bytearray()
        while len(data) <= size and (chunk := file.read(min(_READ_BYTES, size + 1 - len(data)))):
            data += chunk
    if len(data) != size:
        problem = "truncated" if len(data) < size else "longer than its header says"
        found = f"{len(data)} bytes" if len(data) < size else "more"
        raise DataError(f"{path}: {problem}: shape {list(shape)} needs {size} bytes, the file has {found}")
    return np.frombuffer(data, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))


def load_idx(
    images_path: PathLike,
    labels_path: PathLike,
    *,
    classes: Sequence[str] | None = None,
    raw: bool = False,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: Fit = "stretch",
    limit: int | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Dataset:
    """Images and labels from two IDX files: input "image", float32 in [0, 1] of shape [N, C, H, W].

    Images are unsigned bytes of shape [N, H, W] (C = 1) or [N, C, H, W]; labels unsigned bytes of shape [N].
    With `raw` the images stay unsigned bytes, for a `Preparation` to divide by 255.
    `classes` are "0", "1", ... up to the largest label unless given. With `image_size` (a side, or H and W),
    `channels` (1 or 3) and `fit` images are brought to what a network takes, as those of folders are; with
    `limit`, so many are drawn with `seed` in proportion of the classes.

    Raises DataError as `read_idx` does, and for other types or shapes, differing counts, labels outside
    `classes`, and images that would take more than 8 GiB; ConfigError for a bad size, channels or limit.
    """
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"{images_path}: holds {images.dtype} of shape {list(images.shape)}; images are unsigned bytes "
            "of shape [N, H, W] or [N, C, H, W] (are images and labels exchanged?)"
        )
    if labels.dtype != np.uint8 or labels.ndim != 1:
        raise DataError(
            f"{labels_path}: holds {labels.dtype} of shape {list(labels.shape)}; labels are unsigned bytes "
            "of shape [N] (are images and labels exchanged?)"
        )
    if len(images) != len(labels):
        raise DataError(f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} labels")
    if len(images) == 0:
        raise DataError(f"{images_path}: the data set is empty")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: at least 1 image is needed")
    if classes is None:
        classes = [str(c) for c in range(int(labels.max()) + 1)]
    if limit is not None and limit < len(images):
        chosen = stratified_sample(labels, limit, seed)
        images, labels = images[chosen], labels[chosen]
    images = images[:, None] if images.ndim == 3 else images
    if image_size is not None or channels is not None:
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        taken = len(images) * (channels or images.shape[1]) * math.prod(size or images.shape[2:])
        if taken > _LARGEST:
            raise DataError(
                f"{images_path}: {len(images)} images of this size take {taken >> 30} GiB; take fewer with "
                "limit (--limit), or a smaller image_size"
            )
        images = fit_images(images, size, channels, fit)
    if not raw:
        images = images.astype(np.float32)
        images /= np.float32(255)
    return Dataset(
        inputs={"image": images},
        targets=labels.astype(np.int64),
        classes=tuple(classes),
        name=name if name is not None else stem(images_path),
    )


def load_idx_folder(
    folder: PathLike,
    *,
    classes: Sequence[str] | None = None,
    raw: bool = False,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: Fit = "stretch",
    limit: int | None = None,
    seed: int = 0,
) -> tuple[Dataset, Dataset | None]:
    """The data set in a folder with MNIST's file names, and its test part if the folder has one.

    Looks for `<part>-images-idx3-ubyte` and `<part>-labels-idx1-ubyte` (also with `.idx3-ubyte`; with or
    without `.gz`). Parts `train` and `t10k` (or `test`) are the training and the test data; a single part of
    any other name is a data set without a test part. `limit` holds for each part; the other options are those
    of `load_idx`. Raises DataError for anything else.
    """
    root = Path(folder)
    if not root.is_dir():
        raise StorageError(f"{folder}: no such folder")
    parts: dict[str, dict[str, Path]] = {}
    for path in sorted(root.iterdir()):
        for kind, rank in (("images", 3), ("labels", 1)):
            for ending in (f"-{kind}-idx{rank}-ubyte", f"-{kind}.idx{rank}-ubyte"):
                prefix = path.name.removesuffix(".gz").removesuffix(ending)
                if prefix and prefix != path.name.removesuffix(".gz"):
                    if kind in parts.setdefault(prefix, {}):
                        raise DataError(f"{folder}: two files hold the {kind} of part {prefix!r}; keep one")
                    parts[prefix][kind] = path
    if not parts:
        raise DataError(
            f"{folder}: no files named <part>-images-idx3-ubyte[.gz] and <part>-labels-idx1-ubyte[.gz]"
        )
    for prefix, files in parts.items():
        for kind in ("images", "labels"):
            if kind not in files:
                raise DataError(f"{folder}: part {prefix!r} has no {kind} file")
    train = [prefix for prefix in parts if prefix in _TRAIN_PREFIXES]
    test = [prefix for prefix in parts if prefix in _TEST_PREFIXES]
    rest = [prefix for prefix in parts if prefix not in (*train, *test)]
    if len(train) == 1 and len(test) <= 1 and not rest:
        main = train[0]
    elif len(rest) == 1 and not train and not test:
        main = rest[0]
    else:
        raise DataError(
            f"{folder}: cannot tell training from test among the parts {sorted(parts)}; name them train and "
            "t10k, or leave one part"
        )
    name = stem(folder)
    read = functools.partial(
        load_idx, raw=raw, image_size=image_size, channels=channels, fit=fit, limit=limit, seed=seed
    )
    data = read(parts[main]["images"], parts[main]["labels"], classes=classes, name=name)
    if not test:
        return data, None
    files = parts[test[0]]
    return data, read(files["images"], files["labels"], classes=data.classes, name=f"{name} test")
