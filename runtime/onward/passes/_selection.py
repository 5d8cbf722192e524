"""Which nodes a conversion leaves alone."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onward.errors import ConfigError

__all__ = ["chosen_nodes"]


def chosen_nodes(model: ir.Model, keep: Collection[str]) -> frozenset[str]:
    """Names of operators and nodes, each of which the model has.

    Raises:
        ConfigError: it lacks one.
    """
    known = {name for node in model.graph.all_nodes() for name in (node.op_type, node.name)}
    if missing := [name for name in keep if name not in known]:
        operators = sorted({node.op_type for node in model.graph.all_nodes()})
        raise ConfigError(
            f"nothing to keep is called {missing[0]!r}: names of nodes or operators are needed, "
            f"and the operators are {', '.join(operators)}"
        )
    return frozenset(keep)
