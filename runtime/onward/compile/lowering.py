"""From a placed program to kernel calls: the walk over groups, which asks the rules.

Operators say what they need (`lower` in their file); rules registered for such requests emit the calls. What
no rule suits runs its NumPy kernel inside the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import final

from onward.compile.context import Context, Emitted, Queries, Site
from onward.compile.expressions import Elements
from onward.compile.fusion import fusion
from onward.compile.groups import Group
from onward.compile.items import Check, Item
from onward.compile.placement import Placement, whole
from onward.compile.program import Operation
from onward.compile.registry import rule_for
from onward.compile.tensors import Buffer, Place, Tensor
from onward.compile.unit import Unit
from onward.graph.requests import Request, Unsupported

__all__ = ["Lowered", "lower"]


@final
@dataclass(frozen=True, eq=False)
class Lowered:
    """A program as calls.

    Attributes:
        calls: of a run, in order.
        prologue: those that depend on weights alone: they run once for given weights.
        input_checks: checks of the caller's inputs: they run before the first call.
        outputs: where the results are after a run, but for those that replace state.
    """

    calls: tuple[Item, ...]
    prologue: tuple[Item, ...]
    input_checks: tuple[Check, ...]
    outputs: Mapping[str, Tensor]


def lower(unit: Unit, placement: Placement, bindings: Mapping[str, str]) -> Lowered:
    """The calls that compute a program.

    Args:
        unit: what is planned.
        placement: where state, weights and inputs are; the places of all other values are added.
        bindings: state inputs and the outputs that replace them.
    """
    walk = _Walk(unit, placement)
    walk.emitted.changing.update(tensor.buffer for tensor in placement.reserved.values())
    old = _keep_old_state(walk, bindings)
    waiting: dict[Group, None] = {}
    for position, group in enumerate(unit.groups):
        _lower_group(walk, position, group, waiting)
    assert not waiting, "who waits has a reader"
    _bring_state_home(walk, bindings)
    outputs = _outputs(walk, bindings, old)
    emitted = walk.emitted
    return Lowered(tuple(emitted.calls), tuple(emitted.prologue), tuple(emitted.input_checks), outputs)


@final
@dataclass(frozen=True, eq=False)
class _Walk:
    """What the calls of all groups are added to."""

    unit: Unit
    placement: Placement
    emitted: Emitted = field(default_factory=Emitted)

    def queries(self, site: Site) -> Queries:
        """For rules that are asked whether they suit a site."""
        return Queries(self.unit, self.placement, self.emitted, site)

    def context(self, site: Site) -> Context:
        """For the rules that lower a site."""
        return Context(self.unit, self.placement, self.emitted, site)


def _lower_group(walk: _Walk, position: int, group: Group, waiting: dict[Group, None]) -> None:
    """Add a group's calls, or let it wait for the group that may become part of it."""
    if group.shape is None:
        if _can_wait(walk.unit, group):
            waiting[group] = None
        else:
            _lower_single(walk, Site(position, _label(group), tuple(waiting)), group)
        return
    hosts = [g for v in group.inputs for g in waiting if g.last.outputs[0] is v]
    for host in reversed(hosts):
        del waiting[host]
        site = Site(position, _label(host), tuple(waiting))
        if host is hosts[0] and _lower_fused(walk, site, host, group):
            return
        _lower_single(walk, site, host)
    site = Site(position, _label(group), tuple(waiting))
    made = (v for o in group.operations for v in o.outputs)
    wanted = tuple(v for v in made if walk.unit.uses.escapes(v, group))
    _lower_elements(walk, site, Elements(wanted, tuple(group.operations), group.shape))


def _label(group: Group) -> str:
    return " + ".join(o.label for o in group.operations)


def _can_wait(unit: Unit, group: Group) -> bool:
    """Whether a producer's result is read by one element-wise group alone, which it may then compute."""
    if group.elements or not group.last.request.fuses_elements:
        return False
    value = group.last.outputs[0]
    users = unit.uses.groups(value)
    shape = unit.program.shapes[value]
    return value not in unit.uses.outputs and len(users) == 1 and users[0].shape == shape


def _unsuited(queries: Queries, request: Request) -> str | None:
    """Why no kernel computes a request; None where one does."""
    if isinstance(request, Unsupported):
        return request.reason
    if (rule := rule_for(request)) is None:
        return "no compiled kernel"
    return rule.suits(queries, request)


def _emit(context: Context, request: Request) -> None:
    rule = rule_for(request)
    assert rule is not None
    rule.emit(context, request)


def _lower_fused(walk: _Walk, site: Site, host: Group, group: Group) -> bool:
    """Let the kernel that produces an operand of an element-wise group compute the group, if it can."""
    queries, operation = walk.queries(site), host.last
    request, value = operation.request, operation.outputs[0]
    if _unsuited(queries, request) is not None:
        return False
    if queries.has_image(value) and value not in (*request.channels_last, *request.same_layout):
        return False  # such as a product, whose kernel writes rows, not an image with channels last
    if (found := fusion(queries, value, group)) is None:
        return False
    converted = walk.context(replace(site, label=_label(group)))
    both = f"{_label(host)} + {_label(group)}"
    _emit(walk.context(replace(site, label=both, write_back=found.write_back(converted))), request)
    return True


def _lower_single(walk: _Walk, site: Site, group: Group) -> None:
    """Lower an operation, the element-wise ones before it as expressions if its kernel takes them."""
    operation, elements = group.last, tuple(group.elements)
    if not elements and _is_empty(walk, operation):
        for value in operation.outputs:
            if value.name:
                walk.context(site).new_plain(value)
        return
    joint = replace(site, elements=elements)
    reason = _unsuited(walk.queries(joint), operation.request)
    if reason is None:
        _emit(walk.context(joint), operation.request)
        return
    if elements:
        wanted = tuple(v for o in elements for v in o.outputs if v in operation.inputs)
        shape = walk.unit.program.shapes[wanted[0]]
        _lower_elements(walk, site, Elements(wanted, elements, shape))
    walk.context(site).fallback(operation, reason)


def _is_empty(walk: _Walk, operation: Operation) -> bool:
    """Whether nothing is left to compute: no result has elements."""
    made = [v for v in operation.outputs if v.name]
    return bool(made) and all(0 in walk.unit.program.shapes[v] for v in made) and not operation.request.starts


def _lower_elements(walk: _Walk, site: Site, request: Elements) -> None:
    """Lower an element-wise pass; what cannot be one runs operation by operation."""
    if 0 in request.shape:
        for value in request.outputs:
            walk.context(site).new_plain(value)
        return
    reason = _unsuited(walk.queries(site), request)
    if reason is None:
        _emit(walk.context(site), request)
        return
    for operation in request.operations:
        walk.context(site).fallback(operation, reason)


# -- state ---------------------------------------------------------------------------------------------------


def _keep_old_state(walk: _Walk, bindings: Mapping[str, str]) -> dict[str, Tensor]:
    """State that is an output as it was before the run is copied before anything replaces it."""
    program, placement = walk.unit.program, walk.placement
    replaced = set(bindings.values())
    kept: dict[str, Tensor] = {}
    for name, value in program.outputs.items():
        if name not in replaced and value in program.state.values():
            source = placement.plain[value]
            kept[name] = whole(Buffer(max(1, source.nbytes)), source.shape, source.dtype)
            walk.context(Site(0, name)).copy(source, kept[name])
    return kept


def _bring_state_home(walk: _Walk, bindings: Mapping[str, str]) -> None:
    """Copy replacements that are not in the state's place; what is other state goes by way of a copy."""
    program, placement = walk.unit.program, walk.placement
    end = len(walk.unit.groups) - 1
    pending: list[tuple[Context, Tensor, Tensor]] = []
    for name, output in bindings.items():
        state, value = program.state[name], program.outputs[output]
        context = walk.context(Site(end, name))
        source, target = context.plain(value), placement.plain[state]
        if source.buffer is target.buffer:
            continue
        if source.buffer.place is Place.FIXED and not context.is_constant(source):
            held = whole(Buffer(max(1, source.nbytes)), source.shape, source.dtype)
            context.copy(source, held)
            source = held
        pending.append((context, source, target))
    for context, source, target in pending:
        context.copy(source, target)


def _outputs(walk: _Walk, bindings: Mapping[str, str], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where the results that do not replace state are."""
    replaced = set(bindings.values())
    found: dict[str, Tensor] = {}
    for name, value in walk.unit.program.outputs.items():
        if name not in replaced:
            site = Site(max(0, len(walk.unit.groups) - 1), name)
            found[name] = old.get(name) or walk.context(site).plain(value)
    return found
