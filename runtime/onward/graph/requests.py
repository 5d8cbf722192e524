"""What an operator asks of the compiler: requests, plain data that its `lower` returns.

A request names the values that it takes and gives, and what is to be computed from them: geometry, axes,
attributes with their defaults filled in. It does not say how. Rules in `onward.compile.rules` are registered
for a class of requests; passes over layouts, memory traffic and element types read requests, never the names
of operators.

In every class, results come first, then operands. All extents are known: requests are made of a graph whose
shapes are fixed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import onnx_ir as ir

from onward.graph.expression import Expression
from onward.graph.types import Array
from onward.graph.windows import Geometry

__all__ = [
    "NO_KERNEL",
    "AdamUpdate",
    "AveragePool",
    "AveragePoolGradient",
    "BatchNormalization",
    "BatchNormalizationGradient",
    "Broadcast",
    "Concat",
    "Convert",
    "Convolution",
    "ConvolutionInput",
    "ConvolutionWeight",
    "CrossEntropy",
    "CrossEntropyGradient",
    "Dropout",
    "Fill",
    "Gather",
    "GatherGradient",
    "GroupNormalization",
    "Identity",
    "Integers",
    "LayerNormalization",
    "LayerNormalizationGradient",
    "LocalResponse",
    "LocalResponseGradient",
    "MaxPool",
    "MaxPoolGradient",
    "Pad",
    "Position",
    "Product",
    "RMSNormalization",
    "Recurrence",
    "Recurrent",
    "RecurrentGradient",
    "Reduction",
    "Request",
    "Slices",
    "Softmax",
    "Static",
    "Tile",
    "Transpose",
    "Unsupported",
    "Values",
    "View",
]

Values: TypeAlias = tuple[ir.Value, ...]


class Static(Protocol):
    """What is known of a graph's values before it runs."""

    @abstractmethod
    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """A value's shape."""

    @abstractmethod
    def known(self, value: ir.Value) -> Array | None:
        """The contents of a constant."""


@dataclass(frozen=True)
class Request:
    """Base of all requests; what the passes before lowering read."""

    fuses_elements: ClassVar[bool] = False
    """Whether a kernel can compute element-wise operations on the result before it writes it back."""

    @property
    def channels_last(self) -> Values:
        """Operands and results that kernels take and give channels-last."""
        return ()

    @property
    def same_layout(self) -> Values:
        """Operands and results that kernels take and give in any layout that they share."""
        return ()

    @property
    def expressions(self) -> Values:
        """Operands, of one shape, that kernels take as expressions of other tensors."""
        return ()


@dataclass(frozen=True)
class Unsupported(Request):
    """No kernel computes the node, for a reason: its NumPy kernel runs inside the plan."""

    reason: str


NO_KERNEL = Unsupported("no compiled kernel")


# -- elements that move, and are not computed ----------------------------------------------------------------


@dataclass(frozen=True)
class Identity(Request):
    """y = x."""

    y: ir.Value
    x: ir.Value


@dataclass(frozen=True)
class View(Request):
    """y is x's elements in the same order under another shape."""

    y: ir.Value
    x: ir.Value


@dataclass(frozen=True)
class Transpose(Request):
    """Axis i of y is axis perm[i] of x."""

    y: ir.Value
    x: ir.Value
    perm: tuple[int, ...]


@dataclass(frozen=True)
class Slices(Request):
    """Windows on x: outputs[i] = x[picked[i]], with a slice for each axis."""

    outputs: Values
    x: ir.Value
    picked: tuple[tuple[slice, ...], ...]


@dataclass(frozen=True)
class Concat(Request):
    """The operands one behind the other along an axis."""

    y: ir.Value
    operands: Values
    axis: int

    @property
    def same_layout(self) -> Values:
        return (*self.operands, self.y)


@dataclass(frozen=True)
class Pad(Request):
    """x inside y from `before` on along each axis, what is negative cut off; `value` around it."""

    y: ir.Value
    x: ir.Value
    before: tuple[int, ...]
    value: float

    @property
    def same_layout(self) -> Values:
        return self.x, self.y


@dataclass(frozen=True)
class Broadcast(Request):
    """x broadcast to y's shape."""

    y: ir.Value
    x: ir.Value


@dataclass(frozen=True)
class Tile(Request):
    """x repeated along each axis."""

    y: ir.Value
    x: ir.Value
    repeats: tuple[int, ...]


@dataclass(frozen=True)
class Fill(Request):
    """One value everywhere; `value` is an array of no axes."""

    y: ir.Value
    value: Array


@dataclass(frozen=True)
class Convert(Request):
    """x in y's element type."""

    y: ir.Value
    x: ir.Value


# -- sums of products ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product(Request):
    """y = op(left) op(right) + bias as numpy.matmul: leading axes are broadcast, vectors are matrices of one
    row or column, and op exchanges the last two axes where it says so. A bias is one row.
    """

    fuses_elements = True

    y: ir.Value
    left: ir.Value
    right: ir.Value
    bias: ir.Value | None = None
    transpose_left: bool = False
    transpose_right: bool = False


@dataclass(frozen=True)
class Convolution(Request):
    """y = x ∗ w + bias, over x [N, C, *spatial] and w [M, C / group, *kernel]."""

    fuses_elements = True

    y: ir.Value
    x: ir.Value
    w: ir.Value
    bias: ir.Value | None
    geometry: Geometry
    group: int

    @property
    def channels_last(self) -> Values:
        return self.x, self.y


@dataclass(frozen=True)
class ConvolutionInput(Request):
    """dx = the gradient of x ∗ w by x; `geometry` is that of x ∗ w."""

    fuses_elements = True

    dx: ir.Value
    dy: ir.Value
    w: ir.Value
    geometry: Geometry
    group: int

    @property
    def channels_last(self) -> Values:
        return self.dy, self.dx


@dataclass(frozen=True)
class ConvolutionWeight(Request):
    """dw = the gradient of x ∗ w by w; `geometry` is that of x ∗ w."""

    dw: ir.Value
    dy: ir.Value
    x: ir.Value
    geometry: Geometry
    group: int

    @property
    def channels_last(self) -> Values:
        return self.dy, self.x


# -- windows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaxPool(Request):
    """The largest element of each window of x [N, C, *spatial]."""

    y: ir.Value
    x: ir.Value
    geometry: Geometry

    @property
    def channels_last(self) -> Values:
        return self.x, self.y


@dataclass(frozen=True)
class MaxPoolGradient(Request):
    """Each element of dy goes to its window's first maximum in x."""

    dx: ir.Value
    dy: ir.Value
    x: ir.Value
    geometry: Geometry

    @property
    def channels_last(self) -> Values:
        return self.dy, self.x, self.dx


@dataclass(frozen=True)
class AveragePool(Request):
    """The mean of each window of x [N, C, *spatial]."""

    y: ir.Value
    x: ir.Value
    geometry: Geometry
    count_include_pad: bool

    @property
    def channels_last(self) -> Values:
        return self.x, self.y


@dataclass(frozen=True)
class AveragePoolGradient(Request):
    """Each element of dy in equal shares to its window."""

    dx: ir.Value
    dy: ir.Value
    geometry: Geometry
    count_include_pad: bool

    @property
    def channels_last(self) -> Values:
        return self.dy, self.dx


@dataclass(frozen=True)
class LocalResponse(Request):
    """y = x · (bias + alpha / size · Σ x²)^−beta, the sum over `size` neighbouring channels."""

    y: ir.Value
    x: ir.Value
    size: int
    alpha: float
    beta: float
    bias: float

    @property
    def channels_last(self) -> Values:
        return self.x, self.y


@dataclass(frozen=True)
class LocalResponseGradient(Request):
    """The gradient of `LocalResponse` by x."""

    dx: ir.Value
    dy: ir.Value
    x: ir.Value
    size: int
    alpha: float
    beta: float
    bias: float

    @property
    def channels_last(self) -> Values:
        return self.dy, self.x, self.dx


# -- reductions, and what is made of them --------------------------------------------------------------------


@dataclass(frozen=True)
class Reduction(Request):
    """y = after(`how` of before(x) over axes, the number of elements of each); no axes are all of them.

    Attributes:
        how: "sum", "prod", "max" or "min".
        before, after: what is computed of each element, and of each result and the number of its elements.
    """

    y: ir.Value
    x: ir.Value
    axes: tuple[int, ...]
    how: str
    before: Callable[[Expression], Expression]
    after: Callable[[Expression, int], Expression]


@dataclass(frozen=True)
class Position(Request):
    """The position along an axis of the largest ("max") or smallest ("min") element, the first or last one;
    a NaN counts as it."""

    y: ir.Value
    x: ir.Value
    axis: int
    how: str
    last: bool = False


@dataclass(frozen=True)
class Softmax(Request):
    """exp(x) / Σ exp(x), the sum over axes, or its logarithm."""

    y: ir.Value
    x: ir.Value
    axes: tuple[int, ...]
    logarithm: bool = False


@dataclass(frozen=True)
class LayerNormalization(Request):
    """Y, and Mean and InvStdDev where they are named, over the axes from `axis` on."""

    outputs: Values
    x: ir.Value
    scale: ir.Value
    bias: ir.Value | None
    axis: int
    epsilon: float


@dataclass(frozen=True)
class LayerNormalizationGradient(Request):
    """dX, and dScale and dB where they are named."""

    outputs: Values
    dy: ir.Value
    x: ir.Value
    scale: ir.Value
    axis: int
    epsilon: float


@dataclass(frozen=True)
class RMSNormalization(Request):
    """y = x / sqrt(mean(x²) + epsilon) · scale, over the axes from `axis` on."""

    y: ir.Value
    x: ir.Value
    scale: ir.Value
    axis: int
    epsilon: float


@dataclass(frozen=True)
class GroupNormalization(Request):
    """The statistics of each sample's groups of channels, then scale and bias of each channel."""

    y: ir.Value
    x: ir.Value
    scale: ir.Value
    bias: ir.Value
    groups: int
    epsilon: float


@dataclass(frozen=True)
class BatchNormalization(Request):
    """y = scale · (x − mean) / sqrt(variance + epsilon) + bias, a channel at a time.

    In training the statistics are the batch's, and outputs[1:] are the new running ones where they are named:
    momentum · old + (1 − momentum) · batch.
    """

    outputs: Values
    x: ir.Value
    scale: ir.Value
    bias: ir.Value
    mean: ir.Value
    variance: ir.Value
    epsilon: float
    momentum: float
    training: bool


@dataclass(frozen=True)
class BatchNormalizationGradient(Request):
    """dX, dScale and dB of batch normalization in training."""

    outputs: Values
    dy: ir.Value
    x: ir.Value
    scale: ir.Value
    epsilon: float


@dataclass(frozen=True)
class CrossEntropy(Request):
    """Softmax cross-entropy of scores [N, C] against labels [N]; and the logarithms of the probabilities,
    where they are named. The reduction is "none" (losses [N]), "sum" or "mean"."""

    outputs: Values
    scores: ir.Value
    labels: ir.Value
    smoothing: float
    reduction: str


@dataclass(frozen=True)
class CrossEntropyGradient(Request):
    """(p − target) dloss, divided by N for the mean; dloss is [N] where the reduction is "none"."""

    dscores: ir.Value
    dloss: ir.Value
    log_prob: ir.Value
    labels: ir.Value
    smoothing: float
    reduction: str


# -- recurrent operators -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recurrence:
    """What a recurrent operator and its gradient have in common.

    Attributes:
        kind: "LSTM", "GRU" or "RNN".
        x: [T, N, features], or [N, T, features] where `batch_major`.
        w, r, bias, lens, initial, peepholes: the operator's other operands; absent ones are None. `initial`
            has one entry for each state, H first.
        activations: of each direction, in the operator's order, in lower case.
        reverse: for each direction, whether it reads the sequence from its end.
        clip, before_reset, input_forget: the attributes.
    """

    kind: str
    x: ir.Value
    w: ir.Value
    r: ir.Value
    bias: ir.Value | None
    lens: ir.Value | None
    initial: tuple[ir.Value | None, ...]
    peepholes: ir.Value | None
    activations: tuple[tuple[str, ...], ...]
    reverse: tuple[bool, ...]
    batch_major: bool = False
    clip: float | None = None
    before_reset: bool = False
    input_forget: bool = False


@dataclass(frozen=True)
class Recurrent(Request):
    """Y and the last states, those that are named."""

    outputs: Values
    of: Recurrence


@dataclass(frozen=True)
class RecurrentGradient(Request):
    """The gradients of X, W, R, B, the initial states and P, those that are named.

    Attributes:
        dy, d_last: the gradients of Y and of the last states; absent ones are None.
    """

    outputs: Values
    of: Recurrence
    dy: ir.Value | None
    d_last: tuple[ir.Value | None, ...]


# -- others --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gather(Request):
    """y = data[indices] along an axis."""

    y: ir.Value
    data: ir.Value
    indices: ir.Value
    axis: int


@dataclass(frozen=True)
class GatherGradient(Request):
    """Zeros, to which the slices of dy along an axis are added where their index points, in order."""

    ddata: ir.Value
    dy: ir.Value
    indices: ir.Value
    axis: int


@dataclass(frozen=True)
class Dropout(Request):
    """y = x / (1 − ratio) where a number drawn for the element's position is at least ratio, else 0.

    Attributes:
        seed, step, salt: what the numbers follow from.
    """

    y: ir.Value
    x: ir.Value
    seed: ir.Value
    step: ir.Value
    ratio: float
    salt: int

    @property
    def same_layout(self) -> Values:
        return self.x, self.y


@dataclass(frozen=True)
class Integers(Request):
    """y = a op b for integers, broadcast; `op` is "add", "sub", "mul", "div", "mod" or a comparison."""

    y: ir.Value
    op: str
    a: ir.Value
    b: ir.Value


@dataclass(frozen=True)
class AdamUpdate(Request):
    """A parameter's step by Adam: (parameter, first and second moment) after it.

    Attributes:
        operands: the parameter, its gradient, the moments.
        learning_rate, t: η, and the number of the step.
        element: the results of one element, given those of `operands`, η / (1 − β1^t), sqrt(1 − β2^t) and
            1 − η weight_decay.
    """

    outputs: Values
    operands: Values
    learning_rate: ir.Value
    t: ir.Value
    beta1: float
    beta2: float
    weight_decay: float
    element: Callable[..., tuple[Expression, ...]]
