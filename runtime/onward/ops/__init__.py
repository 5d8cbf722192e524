"""The operators: one file each, named as in the ONNX specification.

Importing this package registers them all. A file here is all that an operator needs: its versions, its
NumPy kernel, its gradient rule and, for `ai.onward`, its body in standard operators.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
