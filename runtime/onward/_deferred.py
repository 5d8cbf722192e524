"""Loads what another library imports, and rarely uses, when it is first used.

`onnx_ir` imports sympy for arithmetic on symbolic dimensions. That takes longer than all other imports of
onward together, and nothing here adds or multiplies a symbolic dimension. While `onnx_ir` is being loaded,
`Deferred` modules therefore stand for sympy and for the module that parses such expressions; the first use of
one of their attributes loads the module that it stands for. A version of onnx_ir that uses them while it is
loaded gets the real ones at once. Whoever imports sympy or onnx_ir before onward has them as they are.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

LIBRARY = "onnx_ir"
DEFERRED = ("sympy", "onnx_ir._symbolic_shapes")


class Deferred(ModuleType):
    """A module that is imported when an attribute of it is first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system's own questions load nothing
            raise AttributeError(f"module {self.__name__!r} is not loaded yet and has no {name!r}")
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _Loader(importlib.abc.Loader):
    """Executes a module as its own loader does, while deferred modules stand for what it imports."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._loader  # for whoever asks for its source or its files
        placed = {name: Deferred(name) for name in DEFERRED if name not in sys.modules}
        sys.modules.update(placed)
        try:
            self._loader.exec_module(module)
        finally:
            for name, deferred in placed.items():
                if sys.modules.get(name) is deferred:
                    del sys.modules[name]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the library as the finders behind it do, and wraps its loader, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != LIBRARY:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def defer() -> None:
    """Have the library's rarely used imports deferred, where it is not loaded yet."""
    if LIBRARY not in sys.modules:
        sys.meta_path.insert(0, _Finder())
