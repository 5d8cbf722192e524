"""Cases of the operators that resample images."""

from __future__ import annotations

from typing import Any

import numpy as np
from tests.ops.harness import Case

from onward.graph import Array

_MODES: list[dict[str, Any]] = [
    {},
    {"mode": "linear"},
    {"mode": "cubic"},
    {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
    {"mode": "linear", "antialias": 1},
    {"mode": "linear", "antialias": 1, "exclude_outside": 1},
    {"mode": "cubic", "antialias": 1, "exclude_outside": 1},
]

_PLACES = ("half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize")

_NO_TYPE = "onnxruntime has no such kernel"
_OTHER = "onnxruntime computes something else"


def _scales(*scales: float) -> Any:
    return np.asarray(scales, np.float32)


def _by_scales(x: tuple[int, ...], scales: Any, attrs: dict[str, Any], **more: Any) -> Case:
    roi = None
    if attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        count = len(scales)
        roi = np.asarray([0.0] * (count - 1) + [-0.2] + [1.0] * (count - 1) + [0.7], np.float32)
    return Case("Resize", [x, roi, scales], attrs, constants=[1, 2], wrt=[0], **more)


def _by_sizes(x: tuple[int, ...], sizes: list[int], attrs: dict[str, Any], **more: Any) -> Case:
    return Case("Resize", [x, None, None, sizes], attrs, wrt=[0], **more)


_UP_AND_DOWN = _scales(1, 1, 2.5, 0.6)

_NEAR = 0.37 + 0.11 * np.arange(24).reshape(1, 3, 4, 2) % 1.3 - 1.0
"""Coordinates within an image, none of them near a pixel's."""

_FAR = np.where(np.arange(24).reshape(1, 3, 4, 2) % 5 == 0, 1.7 + _NEAR, _NEAR)

_SAMPLED = [
    *(
        Case(
            "GridSample",
            [(1, 2, 5, 7), _FAR],
            {"mode": mode, "padding_mode": padding, "align_corners": align},
            without_ort=_OTHER if padding != "zeros" or mode == "cubic" else "",
        )
        for mode in ("nearest", "linear", "cubic")
        for padding in ("zeros", "border", "reflection")
        for align in (0, 1)
    ),
    Case(
        "GridSample",
        [(1, 2, 3, 5, 4), np.resize(_FAR, (1, 2, 2, 2, 3))],
        {"padding_mode": "reflection"},
        without_ort=_OTHER,
    ),
    Case(
        "GridSample", [(2, 3, 5, 7), np.resize(_NEAR, (2, 4, 3, 2))], {"mode": "bilinear"}, opset=16, wrt=()
    ),
]


def _spaced(*shape: int) -> Array:
    """Numbers no two of which are near each other, so that differences do not cross a tie."""
    size = int(np.prod(shape))
    return (np.random.default_rng(size).permutation(size) * 0.05 - size * 0.02).reshape(shape)


_ROIS = np.array([[0.3, 0.2, 4.7, 3.1], [-3.0, 1.4, 2.2, 9.3]])

_OLD = "onnxruntime has no MaxRoiPool of version 22"
_REGIONS = np.array([[1, 0.3, 0.2, 4.6, 3.1], [0, -3.0, 1.4, 2.5, 9.3], [1, 3, 2, 1, 1], [0, 9, 9, 12, 12]])
_POOLED = {"pooled_shape": (2, 3), "spatial_scale": 0.9}

_OTHERS = [
    Case("MaxRoiPool", [_spaced(2, 3, 5, 6), _REGIONS], _POOLED, wrt=[0]),
    Case("MaxRoiPool", [_spaced(2, 3, 5, 6), _REGIONS], _POOLED, opset=22, wrt=(), without_ort=_OLD),
    Case(
        "MaxRoiPoolGrad",
        [(4, 3, 2, 3), _spaced(2, 3, 5, 6), _REGIONS],
        _POOLED,
        domain="ai.onward",
        wrt=(),
    ),
    *(Case("AffineGrid", [(2, 2, 3), [2, 3, 4, 5]], {"align_corners": align}, batch=[]) for align in (0, 1)),
    Case("AffineGrid", [(2, 3, 4), [2, 3, 2, 4, 5]], wrt=[0]),
    Case("Col2Im", [(2, 12, 12), [4, 5], [2, 2]], wrt=[0]),
    Case(
        "Col2Im",
        [(2, 12, 6), [4, 5], [3, 2]],
        {"pads": (1, 0, 2, 1), "strides": (2, 2), "dilations": (1, 2)},
        wrt=[0],
        name="Col2Im-window",
    ),
    Case(
        "MaxUnpool",
        [(1, 2, 2, 2), np.array([[[[0, 3], [8, 10]], [[21, 18], [24, 31]]]])],
        {"kernel_shape": (2, 2), "strides": (2, 2)},
        wrt=[0],
    ),
    *(
        Case(
            "RoiAlign",
            [(2, 3, 5, 6), _ROIS, [1, 0]],
            {
                "output_height": 2,
                "output_width": 3,
                "sampling_ratio": ratio,
                "mode": mode,
                "spatial_scale": 0.9,
            },
            wrt=[0] if ratio and mode == "avg" else (),
            without_ort=_OTHER,
            name=f"RoiAlign-{ratio}-{mode}",
        )
        for ratio in (0, 2)
        for mode in ("avg", "max")
    ),
    Case(
        "RoiAlign", [(2, 3, 5, 6), _ROIS, [1, 0]], {"output_height": 2}, opset=10, wrt=(), without_ort=_OTHER
    ),
    Case(
        "DeformConv",
        [(2, 4, 5, 6), (6, 2, 2, 3), (2, 24, 3, 3), (6,), (2, 12, 3, 3)],
        {"group": 2, "offset_group": 2, "pads": (0, 1, 1, 1), "strides": (2, 2), "dilations": (1, 1)},
        name="DeformConv-groups",
        without_ort=_OTHER,
    ),
    Case("DeformConv", [(1, 2, 4, 4), (1, 2, 2, 2), (1, 8, 3, 3)], without_ort=_OTHER),
]

IMAGES = [
    *_SAMPLED,
    *_OTHERS,
    *(_by_scales((2, 3, 4, 7), _UP_AND_DOWN, at, without_ort=_OTHER) for at in _MODES),
    *(_by_sizes((2, 19, 4, 7), [2, 19, 9, 3], at, without_ort=_OTHER) for at in _MODES),
    *(
        _by_scales(
            (2, 3, 4, 7), _UP_AND_DOWN, {**at, "coordinate_transformation_mode": place}, without_ort=_OTHER
        )
        for place in _PLACES
        for at in _MODES[:3]
    ),
    *(
        _by_sizes((1, 2, 3, 20), [1, 2, 5, 6], {"nearest_mode": rounding}, name=f"Resize-{rounding}")
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    _by_scales((2, 3, 4, 4), _scales(1, 1, 2, 2), {}, batch=[0], name="Resize-doubled"),
    _by_scales((2, 16, 4, 4), _scales(1, 1, 2, 2), {"mode": "linear"}, batch=[0], name="Resize-linear"),
    _by_scales((2, 3, 4, 4), _scales(1, 1, 1, 1), {"mode": "linear"}, batch=[0], name="Resize-nothing"),
    _by_scales(
        (2, 3, 4, 6),
        _scales(2, 0.5),
        {"mode": "linear", "axes": (-1, 2)},
        without_ort=_OTHER,
        batch=[0],
        name="Resize-axes",
    ),
    _by_sizes((2, 5, 8), [2, 5, 11], {"mode": "linear"}, without_ort=_OTHER, name="Resize-signal"),
    _by_sizes((2, 5, 8), [2, 3, 8], {"mode": "linear"}, without_ort=_OTHER, name="Resize-channels"),
    _by_sizes((6, 5), [3, 9], {"mode": "cubic"}, without_ort=_OTHER, name="Resize-matrix"),
    _by_sizes((1, 2, 3, 4, 5), [1, 2, 5, 3, 7], {"mode": "linear"}, name="Resize-volume"),
    *(
        _by_sizes(
            (2, 3, 6, 4),
            [7, 8],
            {"mode": "linear", "axes": (2, 3), "keep_aspect_ratio_policy": policy},
            without_ort=_OTHER,
            name=f"Resize-{policy}",
        )
        for policy in ("not_larger", "not_smaller")
    ),
    Case(
        "Resize",
        [(1, 2, 3, 4), np.zeros(0, np.float32), _scales(1, 1, 2, 2)],
        {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"},
        opset=11,
        constants=[1, 2],
        wrt=[0],
        without_ort=_OTHER,
        name="Resize-tf",
    ),
    *[
        Case(
            "Resize",
            [(1, 2, 7, 7), _scales(1, 1, *scales)],
            {"mode": "nearest"},
            opset=10,
            constants=constants,
            wrt=[0],
            name=f"Resize10-nearest-{'x'.join(map(str, scales))}{'' if constants else '-computed'}",
        )
        for scales in ((0.6, 0.5), (0.6, 1.7), (2.5, 1.0))
        for constants in ([1], [])
    ],
    Case(
        "Resize",
        [(2, 3, 4), _scales(1, 2, 0.5)],
        {"mode": "linear"},
        opset=10,
        constants=[1],
        wrt=(),
        without_ort=_OTHER,
    ),
    Case("Upsample", [(2, 3, 4), _scales(1, 2, 3)], opset=9, constants=[1], wrt=()),
    *(
        Case(
            "ResizeGrad",
            [dy, shape, None, None, sizes],
            at,
            domain="ai.onward",
            wrt=[0],
        )
        for dy, shape, sizes, at in (
            ((2, 3, 9, 3), [2, 3, 4, 7], [2, 3, 9, 3], {"mode": "cubic"}),
            ((2, 3, 9, 3), [2, 3, 4, 7], [9, 3], {"mode": "linear", "axes": (2, 3), "antialias": 1}),
            ((2, 3, 8, 8), [2, 3, 4, 4], [2, 3, 8, 8], {}),
        )
    ),
]
