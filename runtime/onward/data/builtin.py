"""The small data sets that come with scikit-learn: no file and no network needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from onward.data._files import optional_module
from onward.data.dataset import Dataset
from onward.errors import ConfigError

__all__ = ["load_breast_cancer", "load_diabetes", "load_digits", "load_iris", "load_wine"]


def load_digits(image_size: int = 28, *, raw: bool = False) -> Dataset:
    """1,797 hand-written digits (UCI, Alpaydin and Kaynak 1998): input "image", float32 in [0, 1].

    image_size 28: each of the 8x8 pixels repeated 3x3, then 2 pixels of 0 around: [1797, 1, 28, 28].
    image_size 8: as they are, [1797, 1, 8, 8]. Any other raises ConfigError. raw: as an image file would have
    them, uint8 with 255 for full ink, for a `Preparation` to divide by 255.
    """
    if image_size not in (8, 28):
        raise ConfigError(f"digits: image_size must be 28 or 8, not {image_size!r}")
    bunch = _bunch("digits")
    images = np.asarray(bunch.images, dtype=np.float32)[:, None] / np.float32(16)
    if raw:
        images = np.rint(images * 255).astype(np.uint8)
    if image_size == 28:
        images = np.pad(images.repeat(3, axis=2).repeat(3, axis=3), ((0, 0), (0, 0), (2, 2), (2, 2)))
    return Dataset(
        inputs={"image": images},
        targets=np.asarray(bunch.target, dtype=np.int64),
        classes=tuple(str(c) for c in bunch.target_names),
        name="digits",
    )


def load_iris() -> Dataset:
    """150 flowers of 3 species (Fisher 1936): input "features", float32 [150, 4], in cm."""
    return _table("iris")


def load_wine() -> Dataset:
    """178 wines of 3 growers (UCI, Forina 1991): input "features", float32 [178, 13]."""
    return _table("wine")


def load_breast_cancer() -> Dataset:
    """569 tumours, malignant or benign (UCI, Wolberg 1995): input "features", float32 [569, 30]."""
    return _table("breast_cancer")


def load_diabetes() -> Dataset:
    """442 patients and the progress of their disease (Efron et al. 2004), for regression.

    Input "features", float32 [442, 10], not scaled, since scaling over the whole set would carry the
    test part into training; targets float32 [442, 1].
    """
    bunch = _bunch("diabetes", scaled=False)
    return Dataset(
        inputs={"features": np.asarray(bunch.data, dtype=np.float32)},
        targets=np.asarray(bunch.target, dtype=np.float32)[:, None],
        name="diabetes",
        task="regression",
        columns=tuple(bunch.feature_names),
    )


def _table(name: str) -> Dataset:
    bunch = _bunch(name)
    return Dataset(
        inputs={"features": np.asarray(bunch.data, dtype=np.float32)},
        targets=np.asarray(bunch.target, dtype=np.int64),
        classes=tuple(str(c) for c in bunch.target_names),
        name=name,
        columns=tuple(str(c) for c in bunch.feature_names),
    )


def _bunch(name: str, **options: Any) -> Any:
    sklearn = optional_module("sklearn.datasets", "scikit-learn", f"data set {name!r}")
    return getattr(sklearn, f"load_{name}")(**options)
