"""Cases of LSTM, GRU and RNN, and of their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tests.ops.harness import OPSET, Array, Case

from onward.graph import ONWARD_DOMAIN

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_SMOOTH = {"Relu", "Sigmoid", "Softplus", "Softsign", "Tanh"}
_LENS = np.array([4, 1, 3], np.int32)
_EMPTY = np.array([4, 0, 2], np.int32)


def case(
    op_type: str,
    attrs: dict[str, Any] | None = None,
    *,
    bias: bool = True,
    lens: Array | None = None,
    initial: bool = False,
    peepholes: bool = False,
    outputs: int | Sequence[str] | None = None,
    opset: int = OPSET,
    name: str,
    without_ort: str = "",
) -> Case:
    """A sequence of length 4, batch 3, 5 features and 2 units, with or without the optional operands.

    It is differentiated by all floats where its activations have slopes, at the opset of training graphs.
    """
    attrs = attrs or {}
    d = 2 if attrs.get("direction") == "bidirectional" else 1
    size, n = 2, _GATES[op_type]
    state = (3, d, size) if attrs.get("layout") else (d, 3, size)
    inputs: list[Any] = [
        (3, 4, 5) if attrs.get("layout") else (4, 3, 5),
        (d, n * size, 5),
        (d, n * size, size),
    ]
    inputs += [(d, 2 * n * size) if bias else None, lens, state if initial else None]
    if op_type == "LSTM":
        inputs += [state if initial else None, (d, 3 * size) if peepholes else None]
    while inputs[-1] is None:
        inputs.pop()
    smooth = opset == OPSET and set(attrs.get("activations", ())) <= _SMOOTH
    floats = tuple(i for i, x in enumerate(inputs) if isinstance(x, tuple)) if smooth else ()
    if outputs is None:
        outputs = 3 if op_type == "LSTM" else 2
    return Case(
        op_type,
        inputs,
        {"hidden_size": size, **attrs},
        opset=opset,
        outputs=outputs,
        wrt=floats,
        name=f"{op_type}: {name}",
        without_ort=without_ort,
    )


_NO_LAYOUT = "onnxruntime has no kernel for layout 1"

RECURRENT = [
    *(case(o, {"direction": d}, name=d) for o in _GATES for d in ("forward", "reverse", "bidirectional")),
    *(case(o, {"direction": "bidirectional"}, initial=True, lens=_LENS, name="lengths") for o in _GATES),
    *(case(o, bias=False, name="no bias") for o in _GATES),
    *(case(o, {"clip": 0.3}, name="clip", initial=True) for o in _GATES),
    *(case(o, initial=True, opset=v, name=f"opset {v}") for o in _GATES for v in (7, 14, 22)),
    *(
        case(
            o,
            {"layout": 1, "direction": "bidirectional"},
            initial=True,
            name="layout",
            without_ort=_NO_LAYOUT,
        )
        for o in _GATES
    ),
    *(case(o, outputs=["", "h"], name="last state only") for o in _GATES),
    *(case(o, outputs=1, name="sequence only") for o in _GATES),
    case("LSTM", {"direction": "bidirectional"}, peepholes=True, initial=True, name="peepholes"),
    case("LSTM", {"input_forget": 1}, initial=True, name="input_forget"),
    *(
        case("GRU", {"linear_before_reset": 1, "direction": d}, initial=True, name=f"linear before reset {d}")
        for d in ("reverse", "bidirectional")
    ),
    *(
        case("RNN", {"activations": (activation,)}, name=f"activation {activation}")
        for activation in (
            "Elu",
            "HardSigmoid",
            "LeakyRelu",
            "Relu",
            "Sigmoid",
            "Softplus",
            "Softsign",
            "ThresholdedRelu",
        )
    ),
    *(
        case(
            "RNN",
            {"activations": (activation,), "activation_alpha": (0.6,), "activation_beta": (0.2,)},
            name=f"activation {activation}",
        )
        for activation in ("Affine", "ScaledTanh")
    ),
    *(case(o, {"direction": "reverse"}, initial=True, lens=_EMPTY, name="an empty sequence") for o in _GATES),
    case(
        "LSTM",
        {
            "activations": ("HardSigmoid", "Tanh", "ScaledTanh"),
            "activation_alpha": (0.3, 0.7),
            "activation_beta": (0.4, 0.9),
        },
        name="activation parameters",
    ),
]


def gradient_of(case: Case, arriving: Sequence[int] = (0, 1, 2)) -> Case:
    """The gradient's own operator for a case, with gradients of some of the results given."""
    directions, size = case.inputs[1][0], case.attrs["hidden_size"]
    last = (3, directions, size) if case.attrs.get("layout") else (directions, 3, size)
    whole = (3, 4, directions, size) if case.attrs.get("layout") else (4, directions, 3, size)
    shapes = [whole, last, last][: 3 if case.op_type == "LSTM" else 2]
    given = [shape if i in arriving else None for i, shape in enumerate(shapes)]
    operands = [*case.inputs[:4], *case.inputs[5:]]
    return Case(
        f"{case.op_type}Grad",
        [*given, *case.inputs],
        case.attrs,
        domain=ONWARD_DOMAIN,
        outputs=["" if x is None else f"d{i}" for i, x in enumerate(operands)],
        name=f"{case.op_type}Grad{case.name.removeprefix(case.op_type)} from {arriving}",
    )


RECURRENT_GRADIENTS = [
    *(gradient_of(c) for c in RECURRENT if c.wrt),
    *(
        gradient_of(case(o, {"direction": "bidirectional"}, initial=True, name="partly"), arriving)
        for o in _GATES
        for arriving in ((0,), (1,))
    ),
]
