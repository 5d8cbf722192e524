"""Random changes to images, as functions of (seed, epoch, sample index).

Each takes and gives floats of shape [N, C, H, W] and keeps the dtype. A sample is changed alike in whichever
batch it sits. `fill` is the value outside the image: what black is after any normalisation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onward.data.counter import Draws
from onward.data.dataset import Array
from onward.errors import ConfigError, DataError

__all__ = [
    "Augmentation",
    "Compose",
    "Crop",
    "Cutout",
    "Erase",
    "Flip",
    "Mixup",
    "Noise",
    "Rotate",
    "Shift",
    "parse_augmentation",
]


class Augmentation(ABC):
    """A random change to a batch of images."""

    @property
    def mixes(self) -> bool:
        """Whether what becomes of a sample depends on the others in its batch."""
        return False

    @final
    def __call__(self, images: Array, indices: ArrayLike, *, seed: int, epoch: int) -> Array:
        """Change `images` (floats [N, C, H, W]), the samples with these indices (integers [N])."""
        index = np.asarray(indices)
        if images.ndim != 4 or images.dtype.kind != "f":
            raise DataError(
                f"augmentation is for floats of shape [N, C, H, W], not {images.dtype} {list(images.shape)}"
            )
        if index.shape != (len(images),):
            raise DataError(f"augmentation: {len(images)} images, but indices of shape {list(index.shape)}")
        return self.transform(images, Draws.of(seed, epoch, index))

    @abstractmethod
    def transform(self, images: Array, draws: Draws) -> Array:
        """Change `images` by the random numbers in `draws`, one stream a sample; returns a new array."""


@final
@dataclass(frozen=True)
class Compose(Augmentation):
    """One change after the other, each with random numbers of its own."""

    stages: tuple[Augmentation, ...]

    @property
    def mixes(self) -> bool:
        return any(stage.mixes for stage in self.stages)

    def transform(self, images: Array, draws: Draws) -> Array:
        for number, stage in enumerate(self.stages):
            images = stage.transform(images, draws.child(number))
        return images


@final
@dataclass(frozen=True)
class Flip(Augmentation):
    """Mirror with `probability`, left to right and, if `vertical`, independently top to bottom."""

    horizontal: bool = True
    vertical: bool = False
    probability: float = 0.5

    def __post_init__(self) -> None:
        _require(0 <= self.probability <= 1, f"Flip: probability {self.probability} must be from 0 to 1")

    def transform(self, images: Array, draws: Draws) -> Array:
        chosen = draws.uniform(2) < self.probability
        result = images.copy()
        for place, (wanted, axis) in enumerate(((self.horizontal, 3), (self.vertical, 2))):
            if wanted:
                rows = chosen[:, place]
                result[rows] = np.flip(result[rows], axis=axis)
        return result


@final
@dataclass(frozen=True)
class Shift(Augmentation):
    """Move by up to `pixels` along each axis, whole pixels, each distance equally likely."""

    pixels: int = 2
    fill: float = 0.0

    def __post_init__(self) -> None:
        _require(self.pixels >= 0, f"Shift: pixels {self.pixels} must not be negative")

    def transform(self, images: Array, draws: Draws) -> Array:
        height, width = images.shape[2:]
        offsets = draws.integers(-self.pixels, self.pixels, 2)
        return _window(_padded(images, self.pixels, self.fill), offsets + self.pixels, height, width)


@final
@dataclass(frozen=True)
class Crop(Augmentation):
    """Pad by `padding`, then cut a random window of `size`, a side or (H, W); the image's own size if None.

    mode "zero" pads with `fill`, "reflect" mirrors the image at its border (without repeating the border).
    """

    padding: int = 4
    size: int | tuple[int, int] | None = None
    mode: Literal["zero", "reflect"] = "zero"
    fill: float = 0.0

    def __post_init__(self) -> None:
        _require(self.padding >= 0, f"Crop: padding {self.padding} must not be negative")
        _require(self.mode in ("zero", "reflect"), f"Crop: mode {self.mode!r} must be zero or reflect")

    def transform(self, images: Array, draws: Draws) -> Array:
        size = images.shape[2:] if self.size is None else self.size
        height, width = (size, size) if isinstance(size, int) else size
        free = [
            side + 2 * self.padding - want
            for side, want in zip(images.shape[2:], (height, width), strict=True)
        ]
        if min(free) < 0 or height < 1 or width < 1:
            raise ConfigError(
                f"Crop: size {height}x{width} does not fit {images.shape[2]}x{images.shape[3]} images"
            )
        if self.mode == "reflect":
            if self.padding >= min(images.shape[2:]):
                raise ConfigError(f"Crop: cannot reflect {self.padding} pixels of {images.shape[2:]} images")
            around = (self.padding, self.padding)
            padded = np.pad(images, ((0, 0), (0, 0), around, around), mode="reflect")
        else:
            padded = _padded(images, self.padding, self.fill)
        corners = np.floor(draws.uniform(2) * (np.array(free) + 1)).astype(np.int64)
        return _window(padded, corners, height, width)


@final
@dataclass(frozen=True)
class Rotate(Augmentation):
    """Turn about the centre by up to `degrees` either way, bilinear between pixels, `fill` outside."""

    degrees: float = 10.0
    fill: float = 0.0

    def __post_init__(self) -> None:
        _require(0 <= self.degrees <= 180, f"Rotate: degrees {self.degrees} must be from 0 to 180")

    def transform(self, images: Array, draws: Draws) -> Array:
        count, _, height, width = images.shape
        angles = (draws.uniform(1)[:, 0] * 2 - 1) * math.radians(self.degrees)
        # Scalar functions: NumPy's vector cos may round differently at another position in the batch.
        cos = np.array([math.cos(a) for a in angles]).reshape(-1, 1, 1)
        sin = np.array([math.sin(a) for a in angles]).reshape(-1, 1, 1)
        dy = (np.arange(height) - (height - 1) / 2).reshape(1, -1, 1)
        dx = (np.arange(width) - (width - 1) / 2).reshape(1, 1, -1)
        y = np.clip(cos * dy + sin * dx + (height - 1) / 2, -1, height)
        x = np.clip(cos * dx - sin * dy + (width - 1) / 2, -1, width)
        row = np.minimum(np.floor(y).astype(np.int64) + 1, height)
        column = np.minimum(np.floor(x).astype(np.int64) + 1, width)
        low = (y - (row - 1))[:, None].astype(images.dtype)
        right = (x - (column - 1))[:, None].astype(images.dtype)
        flat = _padded(images, 1, self.fill).reshape(count, images.shape[1], -1)
        corner = (row * (width + 2) + column).reshape(count, 1, -1)

        def pixel(offset: int) -> Array:
            return np.take_along_axis(flat, corner + offset, axis=2).reshape(images.shape)

        one = images.dtype.type(1)
        upper = pixel(0) * (one - right) + pixel(1) * right
        lower = pixel(width + 2) * (one - right) + pixel(width + 3) * right
        result: Array = upper * (one - low) + lower * low
        return result


@final
@dataclass(frozen=True)
class Noise(Augmentation):
    """Add normal noise of standard deviation `std` to every pixel; then clip to `limits` if given."""

    std: float = 0.05
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _require(self.std >= 0, f"Noise: std {self.std} must not be negative")

    def transform(self, images: Array, draws: Draws) -> Array:
        noise = draws.normal(math.prod(images.shape[1:])).reshape(images.shape)
        result: Array = images + noise.astype(images.dtype) * images.dtype.type(self.std)
        return result if self.limits is None else np.clip(result, *self.limits)


@final
@dataclass(frozen=True)
class Cutout(Augmentation):
    """Set a `size` x `size` square to `fill`, its centre anywhere, so that it may reach over the border.

    DeVries and Taylor, "Improved regularization of convolutional neural networks with Cutout", 2017.
    """

    size: int = 8
    fill: float = 0.0

    def __post_init__(self) -> None:
        _require(self.size >= 1, f"Cutout: size {self.size} must be 1 or more")

    def transform(self, images: Array, draws: Draws) -> Array:
        height, width = images.shape[2:]
        centre = np.floor(draws.uniform(2) * (height, width)).astype(np.int64)
        inside = [
            (np.arange(side) >= start[:, None]) & (np.arange(side) < start[:, None] + self.size)
            for side, start in zip((height, width), (centre - self.size // 2).T, strict=True)
        ]
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return np.where(hole, images.dtype.type(self.fill), images)


@final
@dataclass(frozen=True)
class Erase(Augmentation):
    """With `probability`, set a rectangle to `fill`: 2 % to `area` of the image, its sides 3:10 to 10:3.

    Source: Zhong et al., "Random erasing data augmentation", AAAI 2020.
    """

    probability: float = 0.5
    area: float = 0.33
    fill: float = 0.0

    def __post_init__(self) -> None:
        _require(0 <= self.probability <= 1, f"Erase: probability {self.probability} must be from 0 to 1")
        _require(0.02 <= self.area <= 1, f"Erase: area {self.area} must be from 0.02 to 1")

    def transform(self, images: Array, draws: Draws) -> Array:
        height, width = images.shape[2:]
        chosen, size, shape, top, left = draws.uniform(5).T
        area = (0.02 + size * (self.area - 0.02)) * height * width
        ratio = np.exp((2 * shape - 1) * math.log(10 / 3))
        tall = np.clip(np.round(np.sqrt(area * ratio)), 1, height)
        wide = np.clip(np.round(np.sqrt(area / ratio)), 1, width)
        y = np.floor(top * (height - tall + 1))
        x = np.floor(left * (width - wide + 1))
        rows = (np.arange(height) >= y[:, None]) & (np.arange(height) < (y + tall)[:, None])
        columns = (np.arange(width) >= x[:, None]) & (np.arange(width) < (x + wide)[:, None])
        hole = rows[:, None, :, None] & columns[:, None, None, :]
        hole &= (chosen < self.probability)[:, None, None, None]
        return np.where(hole, images.dtype.type(self.fill), images)


@final
@dataclass(frozen=True)
class Mixup(Augmentation):
    """s x_i + (1 - s) x_j with the label of x_i; x_j is the sample before it in the batch.

    With s of Beta(alpha + 1, alpha) the expected loss is that of mixed labels and s of Beta(alpha, alpha): so
    any loss takes it. The batch decides the other sample, the sample's own counter the share.

    Sources: Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018; F. Huszár, "mixup: data-
    dependent data augmentation", 2017, for the form with one label.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        _require(0 < self.alpha < math.inf, f"Mixup: alpha {self.alpha} must be above 0")

    @property
    def mixes(self) -> bool:
        return True

    def transform(self, images: Array, draws: Draws) -> Array:
        seeds = (draws.uniform(1)[:, 0] * 2**53).astype(np.int64)
        found = [np.random.default_rng(seed).beta(self.alpha + 1, self.alpha) for seed in seeds.tolist()]
        share = np.array(found, dtype=images.dtype).reshape(-1, 1, 1, 1)
        result: Array = images * share + np.roll(images, 1, axis=0) * (1 - share)
        return result


def parse_augmentation(text: str) -> Augmentation:
    """Read e.g. "flip,shift=2,crop=4,rotate=10,noise=0.05,cutout=8"; a number sets the main option.

    That is Flip's probability, Shift's pixels, Crop's padding, Rotate's degrees, Noise's std, Cutout's size,
    Erase's probability, Mixup's alpha.
    """
    stages: list[Augmentation] = []
    for item in text.split(","):
        name, _, value = (part.strip() for part in item.partition("="))
        try:
            match name:
                case "flip":
                    stages.append(Flip(probability=float(value)) if value else Flip())
                case "shift":
                    stages.append(Shift(int(value)) if value else Shift())
                case "crop":
                    stages.append(Crop(int(value)) if value else Crop())
                case "rotate":
                    stages.append(Rotate(float(value)) if value else Rotate())
                case "noise":
                    stages.append(Noise(float(value)) if value else Noise())
                case "cutout":
                    stages.append(Cutout(int(value)) if value else Cutout())
                case "erase":
                    stages.append(Erase(float(value)) if value else Erase())
                case "mixup":
                    stages.append(Mixup(float(value)) if value else Mixup())
                case _:
                    raise ConfigError(
                        f"augmentation {name!r} is unknown: flip, shift, crop, rotate, noise, cutout, erase, "
                        "mixup exist"
                    )
        except ValueError as error:
            raise ConfigError(
                f"augmentation {item.strip()!r}: {value!r} is not a number for {name}"
            ) from error
    return stages[0] if len(stages) == 1 else Compose(tuple(stages))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _padded(images: Array, padding: int, fill: float) -> Array:
    around = (padding, padding)
    return np.pad(images, ((0, 0), (0, 0), around, around), constant_values=fill)


def _window(images: Array, corners: NDArray[np.int64], height: int, width: int) -> Array:
    """Cut a window of the given size from each image at its own corner (y, x); corners: [N, 2]."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (height, width), axis=(2, 3))
    return np.ascontiguousarray(windows[np.arange(len(images)), :, corners[:, 0], corners[:, 1]])
