"""Every exception that Onward raises on purpose.

    OnwardError
    ├── ModelError            a model that cannot be used as asked
    │   ├── InvalidModelError     malformed, truncated, inconsistent, unsafe to open
    │   └── UnsupportedError      well formed, but an operator, opset, type or gradient is missing
    ├── ShapeError            shapes or dtypes that do not fit together
    │   └── LimitError            a run asks for more memory or iterations than it may have
    ├── DataError             a data set, a batch or a label that cannot be used
    ├── InputError            a named input of a run is missing, unknown, or of the wrong dtype or shape
    ├── ConfigError           an option, a configuration file or a combination of them
    ├── StorageError          a file or folder that cannot be read or written
    ├── TrainingError         a training run that cannot go on (NaN loss, wrong checkpoint)
    └── VerificationError     two engines do not agree

Messages name the thing (node, operator and opset; file; field; layer) and say what to do. Domain errors
carry no status codes: the server maps classes to gRPC codes in one table.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DataError",
    "InputError",
    "InvalidModelError",
    "LimitError",
    "ModelError",
    "OnwardError",
    "ShapeError",
    "StorageError",
    "TrainingError",
    "UnsupportedError",
    "VerificationError",
]


class OnwardError(Exception):
    """The root of every error that Onward raises on purpose."""


class ModelError(OnwardError):
    """A model that cannot be used as asked."""


class InvalidModelError(ModelError):
    """A model file or graph that is malformed, truncated, inconsistent or unsafe to open."""


class UnsupportedError(ModelError):
    """A well-formed model that needs something Onward does not have; lists everything at once."""


class ShapeError(OnwardError):
    """Shapes or dtypes that do not fit together."""


class LimitError(ShapeError):
    """A run that asks for more memory or more iterations than it may have."""


class DataError(OnwardError):
    """A data set, a batch or a label that cannot be used."""


class InputError(OnwardError):
    """A named input of a run that is missing, unknown, or of the wrong dtype or shape."""


class ConfigError(OnwardError):
    """An option, a configuration file, or a contradiction between options."""


class StorageError(OnwardError):
    """A file or folder that cannot be read or written."""


class TrainingError(OnwardError):
    """A training run that cannot go on."""


class VerificationError(OnwardError):
    """Two engines do not agree on a model."""
