"""Operators of one's own: files and installed packages whose import registers them.

Files are those of `import_file`, and of $ONWARD_IMPORT, a list as PATH is one, so that processes that a
process starts have them too. Packages name a module in the entry-point group `onward.operators`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

from onward.errors import ConfigError

__all__ = ["import_file", "load_own"]

_VARIABLE = "ONWARD_IMPORT"
_GROUP = "onward.operators"


def import_file(path: str | os.PathLike[str]) -> None:
    """Import a Python file for what it registers, here and in every process that this one starts.

    Raises:
        ConfigError: there is no such file, or its import fails.
    """
    file = Path(path).expanduser().resolve()
    _import(str(file))
    known = [p for p in os.environ.get(_VARIABLE, "").split(os.pathsep) if p]
    if str(file) not in known:
        os.environ[_VARIABLE] = os.pathsep.join([*known, str(file)])


@functools.cache
def load_own() -> None:
    """Import what $ONWARD_IMPORT and installed packages name.

    Raises:
        ConfigError: an import fails.
    """
    for path in os.environ.get(_VARIABLE, "").split(os.pathsep):
        if path:
            _import(path)
    for point in importlib.metadata.entry_points(group=_GROUP):
        try:
            point.load()
        except Exception as error:
            raise ConfigError(f"operators of {point.value}: {type(error).__name__}: {error}") from error


@functools.cache
def _import(path: str) -> None:
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{path}: no such file; give a Python file that registers operators")
    name = f"onward_own_{file.stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
