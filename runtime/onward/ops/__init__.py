"""The operators: one file each, named as in the ONNX specification.

A file is imported when its operator is first asked for, and registers it then. It is all that an operator
needs: its versions, its NumPy kernel, its gradient rule and, for `ai.onward`, its body in standard operators.
"""

import functools
import importlib
import pkgutil
from collections.abc import Mapping

__all__ = ["load", "load_all"]


def load(op_type: str) -> None:
    """Import the file that is named like an operator, if there is one."""
    if (module := _modules().get(op_type.lower())) is not None:
        importlib.import_module(f"{__name__}.{module}")


def load_all() -> None:
    """Import every operator's file."""
    for module in _modules().values():
        importlib.import_module(f"{__name__}.{module}")


@functools.cache
def _modules() -> Mapping[str, str]:
    """Files by the operator's name in small letters: conv_grad_input.py by convgradinput."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return {name.replace("_", ""): name for name in names if not name.startswith("_")}
