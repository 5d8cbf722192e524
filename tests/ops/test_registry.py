"""The registered classes against the ONNX schemas."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest

from onward.graph import ONWARD_DOMAIN, Op, registered

_CLASSES = [
    (domain, op_type, since, cls)
    for (domain, op_type), versions in sorted(registered().items())
    for since, cls in sorted(versions.items())
]
_STANDARD = [entry for entry in _CLASSES if entry[0] != ONWARD_DOMAIN]


def _name(entry: Any) -> str:
    return f"{entry[1]}-{entry[2]}"


def _schema_value(attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute.default_value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return tuple(v.decode() if isinstance(v, bytes) else v for v in value)
    return value


@pytest.mark.parametrize("entry", _STANDARD, ids=_name)
def test_attributes_are_those_of_the_schema(entry: tuple[str, str, int, type[Op]]) -> None:
    domain, op_type, since, cls = entry
    schema = onnx.defs.get_schema(op_type, since, domain)
    assert schema.since_version == since, "no such version"
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "output_count"}
    wanted = {name for name in schema.attributes if name != "consumed_inputs"}
    assert set(fields) == wanted
    for name in wanted:
        attribute, default = schema.attributes[name], fields[name].default
        if attribute.required:
            assert default is dataclasses.MISSING, name
        elif attribute.default_value.name:
            expected = _schema_value(attribute)
            if isinstance(expected, float):
                assert np.float32(default) == np.float32(expected), name  # type: ignore[arg-type]
            else:
                assert default == expected, name
        else:
            assert default is None, name


@pytest.mark.parametrize("entry", _CLASSES, ids=_name)
def test_classes_are_documented(entry: tuple[str, str, int, type[Op]]) -> None:
    cls = entry[3]
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), "that is the docstring that dataclass makes up"


def test_versions_are_complete_from_the_first_that_is_registered() -> None:
    every: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and not schema.deprecated:
            every.setdefault(schema.name, set()).add(schema.since_version)
    gaps = {}
    for (domain, op_type), versions in registered().items():
        if domain:
            continue
        before_7 = max((v for v in every[op_type] if v <= 7), default=0)
        if missing := {v for v in every[op_type] if v >= before_7} - set(versions):
            gaps[op_type] = missing
    assert gaps == {}


def test_files_are_found_by_the_operators_name() -> None:
    """Each of these would otherwise cost the import of all files."""
    slow = [t for (_, t), found in registered().items() if not _own_file(t, *found.values())]
    assert slow == ["SoftmaxCrossEntropyGrad"]  # beside SoftmaxCrossEntropy, which comes first in a graph


def _own_file(op_type: str, *classes: type[Op]) -> bool:
    return all(c.__module__.rpartition(".")[2].replace("_", "") == op_type.lower() for c in classes)


def test_only_what_is_asked_for_is_imported() -> None:
    code = (
        "import sys\n"
        "from onward.graph import find, registered\n"
        "from onward.graph.op import versions_of\n"
        "find('', 'Relu', 21)\n"
        "print(sum(m.startswith('onward.ops.') for m in sys.modules))\n"
        "assert versions_of('ai.onward', 'SoftmaxCrossEntropyGrad')\n"
        "assert not versions_of('', 'Nothing')\n"
        "print(len(registered()))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    few, all_ = map(int, done.stdout.split())
    assert few < 5
    assert all_ == len(registered())
