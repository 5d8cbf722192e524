"""Everything the operator suites leave out, and why. An entry that is no longer needed fails its suite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tests.ops.harness import Array, away

_STREAM = "expected values are draws of NumPy's shared generator, whatever seed the node has"

NODE_CASES: dict[str, str] = {
    "test_bernoulli": _STREAM,
    "test_bernoulli_double": _STREAM,
    "test_bernoulli_double_expanded": _STREAM,
    "test_bernoulli_expanded": _STREAM,
    "test_bernoulli_seed": _STREAM,
    "test_bernoulli_seed_expanded": _STREAM,
}
"""Cases of the ONNX project that our kernels do not pass."""

NO_NODE_CASE: dict[str, str] = {
    **dict.fromkeys(
        ("ConcatFromSequence", "SequenceAt", "SequenceEmpty", "SequenceErase", "SequenceLength"),
        "the project has it in models of several nodes only; see test_sequences",
    ),
    **dict.fromkeys(
        ("Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        "the standard leaves its numbers open; see test_random",
    ),
    **dict.fromkeys(
        ("StartCall", "WaitCall"), "they call what is registered; see tests/engine/test_collectives"
    ),
}
"""Registered classes without a case of either kind."""

NO_GRADIENT: dict[str, str] = {
    "Scatter": "deprecated before the opset that training graphs have",
}
"""Operators that the standard calls differentiable and that have no gradient rule."""

GRADIENT_CASES: dict[str, str] = {
    **{
        f"test_{name}_FLOAT_to_{to}": "the operands hold NaN and infinities, the result is rounded"
        for name in ("cast", "castlike")
        for to in ("FLOAT16", "DOUBLE", "BFLOAT16")
    },
    "test_mod_float_edge_cases_fmod_0_float32": "the operands hold NaN and infinities",
    **{
        f"test_{name}": "only the reductions none and add have a gradient"
        for name in (
            "scatter_elements_with_reduction_max",
            "scatter_elements_with_reduction_min",
            "scatter_elements_with_reduction_mul",
            "scatternd_max",
            "scatternd_max_with_element_indices",
            "scatternd_min",
            "scatternd_min_with_element_indices",
            "scatternd_multiply",
        )
    },
}
"""Cases, by the ONNX project's name, that are left out of the gradient suite."""

_NO_FLOAT_MOD = "onnxruntime takes floats with fmod only"
_NO_UNSIGNED = "onnxruntime takes no unsigned exponents"
_NO_LAYOUT = "onnxruntime has no recurrent kernel for layout 1"
_OTHER_SHAPE = "onnx infers another shape than its own case has"

_OWN_DRAWS = "onnxruntime draws the elements that fall from a generator of its own"
_WHOLE_LENGTH = "onnxruntime rounds the resized length that align_corners divides by"

ORT_GRADIENTS: dict[str, str] = {
    **{f"test_training_dropout{name}": _OWN_DRAWS for name in ("", "_default", "_default_mask", "_mask")},
    "test_maxunpool_export_with_output_shape": "onnxruntime takes positions in output_shape",
    "test_resize_downsample_scales_cubic_align_corners": _WHOLE_LENGTH,
    "test_resize_downsample_scales_linear_align_corners": _WHOLE_LENGTH,
    **{f"test_{name}_batchwise": _NO_LAYOUT for name in ("gru", "lstm", "simple_rnn")},
    "test_mod_float32_mixed_sign_fmod_0": _NO_FLOAT_MOD,
    "test_mod_float_edge_cases_fmod_0_float32": _NO_FLOAT_MOD,
    "test_pow_types_float32_uint32": _NO_UNSIGNED,
    "test_pow_types_float32_uint64": _NO_UNSIGNED,
    "test_averagepool_2d_ceil_last_window_starts_on_pad": _OTHER_SHAPE,
    "test_maxpool_2d_ceil_output_size_reduce_by_one": _OTHER_SHAPE,
}
"""Cases whose gradient graph onnxruntime cannot run."""


NO_TORCH: dict[str, str] = {
    "Hardmax": "torch has none",
    "LinearAttention": "torch has none",
    "MaxRoiPool": "torch has none",
    "ReverseSequence": "torch has none",
    "RoiAlign": "torch has none; that of torchvision is another package's",
}
"""Operators whose gradients are not compared with torch's."""

TORCH_GRADIENTS: dict[str, str] = {
    "Det of a singular matrix": "torch gives 0 where the matrix is singular, which is not the slope",
}
"""Cases whose gradient torch has wrong."""

SECOND_ORDER: dict[str, str] = {
    **{
        f"test_reduce_{name}_empty_set": "the gradient of nothing is infinite or not a number"
        for name in ("log_sum", "max", "min")
    },
}
"""Cases whose gradient is not differentiated again."""


def _spaced(x: Array) -> Array:
    """Values in the same order with a gap between neighbours; equal ones become different."""
    order = np.argsort(x, axis=None, kind="stable")
    ranks = np.empty(x.size, np.int64)
    ranks[order] = np.arange(x.size)
    return (ranks.reshape(x.shape) * 0.01 - 1).astype(x.dtype)


def _sloping(x: Array) -> Array:
    return x + np.linspace(0, 0.1, x.size, dtype=x.dtype).reshape(x.shape)


_TIES = "ties have no slope"
_AT_ZERO = "the slope jumps at 0"

MOVED: dict[str, tuple[Callable[[Array], Array], str]] = {
    **{
        name: (lambda x: away(x, [0.0]), _AT_ZERO)
        for name in ("Abs", "Celu", "Elu", "LeakyRelu", "PRelu", "ReduceL1", "Relu", "Selu", "Softsign")
    },
    "LpNormalization": (lambda x: away(x, [0.0], 0.5), "no slope where the norm is 0"),
    "ThresholdedRelu": (lambda x: away(x, [1.0, 2.0]), "the value jumps at alpha"),
    "HardSigmoid": (lambda x: away(x, [-0.8, 0.8, -2.5, 2.5, -1.2]), "the slope jumps where it is clipped"),
    "HardSwish": (lambda x: away(x, [-3.0, 3.0]), "the slope jumps at -3 and 3"),
    "Clip": (lambda x: away(x, [-5.0, -1.0, 0.0, 1.0, 5.0]), "the slope jumps at the limits"),
    **dict.fromkeys(
        ("GlobalMaxPool", "Hardmax", "MaxPool", "ReduceMax", "ReduceMin", "TopK"), (_spaced, _TIES)
    ),
    **dict.fromkeys(("Max", "Min"), (_sloping, _TIES)),
    "Pow": (lambda x: np.abs(x) + np.float32(0.1), "powers of negative numbers are not real"),
    **{name: (lambda x: 0.9 * x, "the slope is unbounded at 1") for name in ("Acos", "Asin", "Atanh")},
    "Acosh": (lambda x: x + np.float32(0.1), "the slope is unbounded at 1"),
}
"""Operators whose operands are moved before differences are taken: how, and why."""
