"""What a run with adapters leaves behind is what was trained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onward.engine import Session
from onward.errors import VerificationError
from onward.graph import Array
from onward.passes import adapters_of
from onward.train import Trainer

__all__ = ["adapter_matrices", "check_merged"]

_ROUNDING = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 1e-4}
"""Of an output's largest magnitude: A B is summed in another order once it is part of the weight."""


def check_merged(trainer: Trainer, inputs: Mapping[str, Array]) -> None:
    """Refuse adapters that compute something else once they are merged.

    Args:
        trainer: has been trained.
        inputs: in the model's own types.

    Raises:
        VerificationError: names the output that differs.
    """
    merged = Session(trainer.model).run(inputs)
    for name, beside in Session(trainer.adapted).run(inputs).items():
        if beside.dtype.kind != "f":
            continue
        scale = float(np.abs(beside).max(initial=0.0))
        worst = float(np.abs(merged[name].astype(np.float64) - beside.astype(np.float64)).max(initial=0.0))
        if not worst <= _ROUNDING.get(beside.dtype, 2e-2) * scale:
            raise VerificationError(
                f"output {name!r} differs by {worst:.3g} once the adapters are merged (its largest is "
                f'{scale:.3g}); nothing was written: give lora.export = "adapter", or a smaller alpha'
            )


def adapter_matrices(model: ir.Model) -> dict[str, Array]:
    """The matrices of a model's adapters by name."""
    names = [name for each in adapters_of(model) for name in (each.a, each.b)]
    tensors = {name: model.graph.initializers[name].const_value for name in names}
    return {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}
