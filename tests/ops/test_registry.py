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

from onward.graph import Op, registered
from onward.graph.canonical import CURRENT_OPSET
from onward.graph.op import CONSUMED_INPUTS, has_schemas

_CLASSES = [
    (domain, op_type, since, cls)
    for (domain, op_type), versions in sorted(registered().items())
    for since, cls in sorted(versions.items())
]
_STANDARD = [entry for entry in _CLASSES if has_schemas(entry[0])]


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
    wanted = {name for name in schema.attributes if name != CONSUMED_INPUTS}
    if since == max(cls.since):
        assert set(fields) == wanted, "the newest version of a class has all its attributes"
    assert set(fields) >= wanted
    lacking = [name for name in fields if name not in wanted]
    assert all(fields[name].default is not dataclasses.MISSING for name in lacking)
    for name in wanted:
        attribute, default = schema.attributes[name], fields[name].default
        if attribute.required:
            newest = onnx.defs.get_schema(op_type, max(cls.since), domain).attributes[name]
            assert default is dataclasses.MISSING or not newest.required, name
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


def test_every_version_from_the_first_is_registered() -> None:
    every: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and not schema.deprecated:
            every.setdefault(schema.name, set()).add(schema.since_version)
    gaps = {
        op_type: missing
        for (domain, op_type), versions in registered().items()
        if not domain and (missing := every[op_type] - set(versions))
    }
    assert gaps == {}


@pytest.mark.parametrize("entry", [entry for entry in _STANDARD if not entry[0]], ids=_name)
def test_old_versions_have_nothing_but_their_current_form(entry: tuple[str, str, int, type[Op]]) -> None:
    cls = entry[3]
    if hasattr(cls, "canonical"):
        assert not any(hasattr(cls, name) for name in ("kernel", "lower", "element", "gradient", "infer"))
    else:
        newest = min(max(CURRENT_OPSET, min(cls.since)), onnx.defs.onnx_opset_version())
        current = onnx.defs.get_schema(cls.op_type, newest, "").since_version
        assert current in cls.since, "it runs as it stands in a current graph"


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
