"""Where the elements of images and weights are: NHWC with a zero halo, and convolution geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onward.errors import ShapeError

__all__ = ["Convolution", "Image", "Weights", "oihw"]


@dataclass(frozen=True)
class Image:
    """A batch of channels-last images inside a border of zeros; the batch size is a run-time argument.

    `pixel` is the distance between neighbouring pixels in elements: at least `channels`, 0 for exactly that.
    A buffer's address is that of the first element of the first image's border. Whoever allocates a buffer
    zeroes the border (and channels past `channels`); kernels never write there. A 1-D signal has height 1.
    """

    height: int
    width: int
    channels: int
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0
    pixel: int = 0

    def __post_init__(self) -> None:
        if self.pixel == 0:
            object.__setattr__(self, "pixel", self.channels)

    @property
    def row(self) -> int:
        """Elements from one row to the next."""
        return (self.left + self.width + self.right) * self.pixel

    @property
    def size(self) -> int:
        """Elements of one image with its border."""
        return (self.top + self.height + self.bottom) * self.row

    @property
    def origin(self) -> int:
        """Elements from the buffer's start to the first real pixel."""
        return self.top * self.row + self.left * self.pixel

    @property
    def contiguous(self) -> bool:
        """Whether all pixels of an image follow each other."""
        return not (self.top or self.left or self.bottom or self.right)

    @property
    def elements(self) -> int:
        """Real values of one image."""
        return self.height * self.width * self.channels


@dataclass(frozen=True)
class Weights:
    """Strides in elements of weights along output channel, input channel in its group, rows, columns."""

    output: int
    input: int
    row: int
    column: int


def oihw(inputs: int, height: int, width: int) -> Weights:
    """ONNX's own order; `inputs` is the number of input channels of a group."""
    return Weights(inputs * height * width, height * width, width, 1)


@dataclass(frozen=True)
class Convolution:
    """The geometry of one convolution. `pads` is (top, left, bottom, right), pairs are (rows, columns).

    `dtype` is that of images and weights.

    Raises `ShapeError` when output size and geometry do not agree or channels do not divide into groups.
    """

    x: Image
    y: Image
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    group: int = 1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        size = (self.x.height, self.x.width)
        want = tuple(
            (size[i] + self.pads[i] + self.pads[i + 2] - (self.kernel[i] - 1) * self.dilations[i] - 1)
            // self.strides[i]
            + 1
            for i in range(2)
        )
        if want != (self.y.height, self.y.width):
            raise ShapeError(f"convolution of {size} gives {want}, not {(self.y.height, self.y.width)}")
        if self.x.channels % self.group or self.y.channels % self.group:
            raise ShapeError(
                f"{self.x.channels} input and {self.y.channels} output channels in {self.group} groups"
            )

    @property
    def inputs(self) -> int:
        """Input channels of a group."""
        return self.x.channels // self.group

    @property
    def outputs(self) -> int:
        """Output channels of a group."""
        return self.y.channels // self.group

    @property
    def flops(self) -> int:
        """Multiplications and additions for one image, in each of the three directions."""
        return 2 * self.y.height * self.y.width * self.y.channels * self.inputs * math.prod(self.kernel)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.y.channels * self.inputs * math.prod(self.kernel)

    def input_halo(self) -> tuple[int, int, int, int]:
        """The border that x needs for forward and for weights: (top, left, bottom, right)."""
        size = (self.x.height, self.x.width)
        count = (self.y.height, self.y.width)
        before = [self.pads[i] for i in range(2)]
        after = [
            max(
                0,
                (count[i] - 1) * self.strides[i]
                + (self.kernel[i] - 1) * self.dilations[i]
                - self.pads[i]
                - (size[i] - 1),
            )
            for i in range(2)
        ]
        return before[0], before[1], after[0], after[1]

    def gradient_halo(self) -> tuple[int, int, int, int]:
        """The border that dy needs for backward-data: (top, left, bottom, right)."""
        count = (self.y.height, self.y.width)
        before, after = [0, 0], [0, 0]
        for i in range(2):
            for phase in self.phases(i):
                if phase.taps and phase.count:
                    first = phase.first_output
                    last = first + phase.count - 1 + (phase.taps - 1) * phase.output_step
                    before[i] = max(before[i], -first)
                    after[i] = max(after[i], last - (count[i] - 1))
        return before[0], before[1], after[0], after[1]

    def phases(self, axis: int) -> list[Phase]:
        """Input positions of an axis by their remainder under the stride: each meets its own taps."""
        size = (self.x.height, self.x.width)[axis]
        kernel, stride, dilation = self.kernel[axis], self.strides[axis], self.dilations[axis]
        pad = self.pads[axis]
        found = []
        for remainder in range(stride):
            taps = [k for k in range(kernel) if k * dilation % stride == remainder]
            first = (remainder - pad) % stride
            common = math.gcd(stride, dilation)
            found.append(
                Phase(
                    first=first,
                    count=max(0, -(-(size - first) // stride)),
                    taps=len(taps),
                    last_tap=taps[-1] if taps else 0,
                    tap_step=stride // common,
                    first_output=(first + pad - taps[-1] * dilation) // stride if taps else 0,
                    output_step=dilation // common,
                )
            )
        return found


@dataclass(frozen=True)
class Phase:
    """Input positions first, first + stride, ...: output `first_output + i + j * output_step` meets position
    number i through tap `last_tap - j * tap_step`, for j below `taps`."""

    first: int
    count: int
    taps: int
    last_tap: int
    tap_step: int
    first_output: int
    output_step: int
