"""The operators: one file each, named as in the ONNX specification.

A file is imported when its operator is first asked for, and registers it then. It is all that an operator
needs: its versions, its NumPy kernel, its gradient rule and, for `ai.onward`, its body in standard operators.
Operators of other domains have folders of their own, by the names in `FOLDERS`.
"""

import functools
import importlib
import pkgutil
from collections.abc import Mapping

__all__ = ["FOLDERS", "load", "load_all"]

FOLDERS = {"": "", "ai.onward": "", "com.microsoft": ".microsoft", "ai.onnx.ml": ".ml"}
"""Where the operators of a domain are: in this package itself, or in one inside it."""


def load(domain: str, op_type: str) -> None:
    """Import the file that is named like an operator of a domain, if there is one."""
    folder = FOLDERS.get(domain)
    if folder is not None and (module := _modules(folder).get(op_type.lower())) is not None:
        importlib.import_module(module)


def load_all() -> None:
    """Import every operator's file."""
    for folder in dict.fromkeys(FOLDERS.values()):
        for module in _modules(folder).values():
            importlib.import_module(module)


@functools.cache
def _modules(folder: str) -> Mapping[str, str]:
    """Modules by the operator's name in small letters: conv_grad_input.py by convgradinput."""
    package = importlib.import_module(f"{__name__}{folder}")
    found = (module for module in pkgutil.iter_modules(package.__path__) if not module.ispkg)
    names = (module.name for module in found if not module.name.startswith("_"))
    return {name.replace("_", ""): f"{package.__name__}.{name}" for name in names}
