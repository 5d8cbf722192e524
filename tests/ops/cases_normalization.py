"""Cases of normalization and of dropout's inference form."""

from __future__ import annotations

import numpy as np
from tests.ops.harness import Case

from onward.graph import Array


def _positive(n: int) -> Array:
    return np.linspace(0.5, 2.0, n)


_SHAPES: list[tuple[int, ...]] = [(4, 3, 5, 6), (4, 3), (4, 3, 7), (2, 2, 3, 2, 3)]
_LAYERS: list[tuple[tuple[int, ...], int, tuple[int, ...]]] = [
    ((2, 4, 6), -1, (6,)),
    ((2, 4, 6), 1, (4, 6)),
    ((2, 4, 6), 1, (6,)),
    ((2, 4, 6), 1, (4, 1)),
    ((2, 4, 6), 1, (1,)),
    ((2, 3, 4, 5), -2, (4, 5)),
]
_GROUPS: list[tuple[tuple[int, ...], int]] = [
    ((2, 4, 6), 2),
    ((2, 6, 3, 4), 3),
    ((2, 4, 2, 2, 3), 1),
    ((3, 4), 2),
]
_NO_ROWS = "onnxruntime's MatMul takes no matrices without rows after a reshape of an empty batch"
_REACH = {"alpha": 0.3, "beta": 0.6, "bias": 1.5}

NORMALIZATION = [
    *(
        Case("BatchNormalization", [x, *[(x[1],)] * 3, _positive(x[1])], {"epsilon": 1e-3}, batch=[0])
        for x in _SHAPES
    ),
    *(
        Case("BatchNormalization", [x, *[(x[1],)] * 3, _positive(x[1])], opset=opset, wrt=())
        for x in _SHAPES
        for opset in (9, 14)
    ),
    Case("BatchNormalization", [(2, 3, 4), *[(3,)] * 3, _positive(3)], opset=7, wrt=()),
    *(
        Case(
            "BatchNormalization",
            [x, *[(x[1],)] * 3, _positive(x[1])],
            {"training_mode": 1, "momentum": 0.8},
            outputs=3,
            name=f"BatchNormalization-training-{len(x)}",
        )
        for x in _SHAPES
    ),
    *(
        Case("LayerNormalization", [x, s, s], {"axis": axis}, wrt=[0, 1, 2], batch=[0])
        for x, axis, s in _LAYERS
    ),
    *(
        Case("LayerNormalization", [x, s], {"axis": axis}, outputs=3, wrt=(), batch=[0])
        for x, axis, s in _LAYERS
    ),
    Case("LayerNormalization", [(3, 5), (3, 5)], {"axis": 0, "epsilon": 1e-2}, wrt=[0, 1]),
    *(Case("GroupNormalization", [x, (x[1],), (x[1],)], {"num_groups": n}) for x, n in _GROUPS),
    *(
        Case(
            "InstanceNormalization",
            [x, (x[1],), (x[1],)],
            opset=opset,
            wrt=None if opset == 21 else (),
            batch=[0],
        )
        for x in _SHAPES
        if len(x) > 2
        for opset in (7, 21, 22)
    ),
    *(
        Case("RMSNormalization", [x, s], {"axis": axis}, opset=23, wrt=[0, 1], batch=[0])
        for x, axis, s in _LAYERS
    ),
    *(
        Case("LpNormalization", [(3, 4, 5)], {"axis": axis, "p": p}, batch=[0], kinks=[0.0])
        for axis in (-1, 1)
        for p in (1, 2)
    ),
    Case("LpNormalization", [np.zeros((2, 3))], wrt=(), name="LpNormalization-zero"),
    *(Case("LRN", [(2, 6, 3, 4)], {**_REACH, "size": size}) for size in (1, 3, 5, 9)),
    Case("LRN", [(2, 6, 3, 4)], {**_REACH, "size": 5}, batch=[0], without_ort=_NO_ROWS, name="LRN-batch"),
    *(
        Case(
            "LRN",
            [(2, 6, 3)],
            {**_REACH, "size": size},
            without_ort="onnxruntime's LRN takes odd sizes and 4-d inputs",
        )
        for size in (2, 3, 4)
    ),
    Case("LRN", [(2, 6, 3, 4)], {"size": 3}, opset=7, wrt=()),
    *(
        Case("MeanVarianceNormalization", [(3, 4, 5, 2)], {"axes": axes})
        for axes in ((0, 2, 3), (1,), (1, 2, 3))
    ),
    *(Case("Dropout", [(3, 4)], outputs=2, opset=opset, wrt=(), batch=[0]) for opset in (7, 10, 12, 13, 22)),
    Case("Dropout", [(3, 4), np.array(0.3), np.array(False)], outputs=2, wrt=[0]),
    Case("Dropout", [(3, 4), np.array(0.0), np.array(True)], outputs=2, wrt=[0], name="Dropout-of-nothing"),
    Case(
        "Dropout",
        [(3, 4), np.array(0.3), np.array(True)],
        {"seed": 3},
        outputs=2,
        wrt=[0],
        name="Dropout-training",
        without_ort="it draws the elements that fall from a generator of its own",
    ),
    Case("BatchNormalizationGrad", [(4, 3, 5, 6), (4, 3, 5, 6), (3,)], domain="ai.onward", outputs=3, wrt=()),
    Case(
        "BatchNormalizationGrad",
        [(4, 3), (4, 3), (3,)],
        {"epsilon": 0.1},
        domain="ai.onward",
        outputs=3,
        wrt=(),
    ),
    *(
        Case("LayerNormalizationGrad", [x, x, s], {"axis": axis}, domain="ai.onward", outputs=3, wrt=())
        for x, axis, s in _LAYERS
    ),
    *(
        Case(
            "GroupNormalizationGrad",
            [x, x, (x[1],)],
            {"num_groups": n},
            domain="ai.onward",
            outputs=3,
            wrt=(),
            batch=[0, 1],
        )
        for x, n in _GROUPS
    ),
    *(
        Case(
            "LRNGrad",
            [(2, 6, 3, 4), (2, 6, 3, 4)],
            {**_REACH, "size": size},
            domain="ai.onward",
            wrt=(),
        )
        for size in (1, 2, 3, 4, 9)
    ),
]
