"""Writes docs/operators.md: every operator of the standard, and what is here of it.

`python scripts/operators.py` writes the file; with `--check` it says whether the file is what it would write.
What checks a gradient comes from the tables of `tests/ops`, so the repository's root has to be importable.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import onnx
from tests.ops.gradient_checks import (
    differentiable_operators,
    gradient_cases,
    without_ort,
    without_second,
    without_torch,
)

from onward.graph import ONWARD_DOMAIN, Op, has_body, registered

FILE = Path(__file__).parents[1] / "docs" / "operators.md"
HEAD = f"""# Operators

`scripts/operators.py` writes this page from the registry; the schemas are those of onnx \
{onnx.__version__}, opset {onnx.defs.onnx_opset_version()}.

- *Versions* are the schema versions that run. Those before the newest form are rewritten with current \
operators when a model is read for execution.
- *Compiled* says how the compiled engine runs the operator: `formula` is a formula of single elements, \
fused with its neighbours; `kernel` a request for native kernels, some forms of which may still be NumPy's \
(`onward inspect --plan` says which and why); `NumPy` its NumPy kernel inside the plan; `function` other \
operators, which its schema or its class has for a body; `body` one step, whose graphs are plans of their own.
- *Gradient* says what checks it: D central differences in float64 on the ONNX project's cases and ours, \
O onnxruntime on the graph that the rule writes, S the gradient of the gradient against central \
differences, T torch autograd, where there is an interpreter with torch; `make conformance` says why one is \
missing. \
`rule`: one without a check; `body`: those \
of the operators in its body. A dash: the schema calls an input differentiable, and there \
is no rule. Empty: it calls none so, and there is no rule either.
"""


def main() -> int:
    """Write the page, or with `--check` compare it."""
    text = _page()
    if "--check" in sys.argv[1:]:
        if not FILE.exists() or FILE.read_text("utf-8") != text:
            print("docs/operators.md is not what the code says: run `make pages`", file=sys.stderr)
            return 1
        return 0
    FILE.write_text(text, "utf-8")
    return 0


def _page() -> str:
    checks = _checks()
    domains: dict[str, list[str]] = defaultdict(list)
    versions: dict[tuple[str, str], set[int]] = defaultdict(set)
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.deprecated:
            versions[schema.domain, schema.name].add(schema.since_version)
    for domain, op_type in sorted(versions.keys() | registered().keys()):
        found = registered().get((domain, op_type), {})
        domains[domain].append(_row(domain, op_type, found, versions[domain, op_type], checks))
    parts = [HEAD]
    for domain, rows in domains.items():
        here = sum(" | missing | " not in row for row in rows)
        parts.append(
            "\n".join(
                [
                    f"## {domain or 'ai.onnx'}",
                    "",
                    f"{here} of {len(rows)} operators.",
                    "",
                    "| operator | versions | compiled | gradient |",
                    "|---|---|---|---|",
                    *rows,
                    "",
                ]
            )
        )
    return "\n".join(parts)


def _row(
    domain: str, op_type: str, found: Mapping[int, type[Op]], versions: set[int], checks: Mapping[str, str]
) -> str:
    marked = not domain and op_type in differentiable_operators()
    bodies = [version for version in sorted(versions) if has_body(domain, op_type, version)]
    if not found and bodies:
        numbers = ", ".join(map(str, bodies))
        gradient = checks.get(op_type, "–" if marked else "body")
        return f"| {op_type} | {numbers} | function | {gradient} |"
    if not found:
        return f"| {op_type} | | missing | {'–' if marked else ''} |"
    numbers = ", ".join(map(str, sorted(found)))
    if lacking := versions - set(found):
        numbers += f" (not {', '.join(map(str, sorted(lacking)))})"
    newest = found[max(found)]
    gradient = "rule" if any(hasattr(newest, n) for n in ("gradient", "body_gradient")) else ""
    if not domain:
        gradient = checks.get(op_type, gradient or ("–" if marked else ""))
    return f"| {op_type} | {numbers} | {_compiled(newest)} | {gradient} |"


def _compiled(cls: type[Op]) -> str:
    for method, name in (
        ("explicit", "body"),
        ("run", "body"),
        ("canonical", "function"),
        ("element", "formula"),
        ("lower", "kernel"),
    ):
        if hasattr(cls, method):
            return name
    return "function" if cls.domain == ONWARD_DOMAIN and not hasattr(cls, "kernel") else "NumPy"


def _checks() -> dict[str, str]:
    found: dict[str, set[str]] = defaultdict(set)
    for case in gradient_cases():
        if not case.domain:
            checks = {"O": without_ort, "S": without_second, "T": without_torch}
            found[case.op_type] |= {"D", *(letter for letter, why in checks.items() if not why(case))}
    return {op_type: " ".join(sorted(letters)) for op_type, letters in found.items()}


if __name__ == "__main__":
    sys.exit(main())
