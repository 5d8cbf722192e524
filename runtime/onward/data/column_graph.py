"""The formulas of a table's columns, as nodes of ONNX: the only form in which they are computed.

Training, the command line, the exported file and every other runtime so compute one thing.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onward.data.columns import CategoryColumn, ColumnPlan, DateColumn, NumberColumn
from onward.graph import Array, Builder

__all__ = ["DATE_PARTS", "date_pattern", "feature_count", "write_features"]

DATE_PARTS = ("year", "month", "day", "weekday", "hour", "elapsed")

_LIMIT = 10.0
"""Standardised numbers are cut there: what lies further is an accident of the scale."""
_FAR = 1e30
_ZONE = r"( ?(Z|UTC|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?))?"
_TIME = rf"([ T]([01]?[0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?{_ZONE})?"
_FIELDS = {"y": r"[0-9]{4}", "m": r"(0?[1-9]|1[0-2])", "d": r"(0?[1-9]|[12][0-9]|3[01])"}


def date_pattern(order: str) -> str:
    """The regular expression of dates whose fields stand in this order.

    A time may follow, and its zone: day and hour are taken as they are written there.
    """
    separator = "\\" + order[1]
    return separator.join(_FIELDS[field] for field in order[::2]) + _TIME


def feature_count(columns: Sequence[ColumnPlan]) -> int:
    """How many features `write_features` gives."""
    total = 0
    for plan in columns:
        if isinstance(plan, CategoryColumn):
            total += _width(plan)
        for number in _numbers(plan):
            total += 1 + number.pieces + number.indicator
    return total


def write_features(g: Builder, columns: Sequence[ColumnPlan], inputs: Mapping[str, ir.Value]) -> ir.Value:
    """Write the preparation of a table: float32 [N, feature_count].

    The numbers of embedded categories come first, in the order of the columns.

    Args:
        g: where.
        columns: what becomes of each.
        inputs: by column name, [N, 1]: numbers float32 or float64, all others strings; or under the name ""
            one matrix [N, F] of all columns that are not left out, which are then numbers.
    """
    numbers = [number for plan in columns for number in _numbers(plan)]
    wide = any(number.wide for number in numbers)
    kind = ir.DataType.DOUBLE if wide else ir.DataType.FLOAT
    embedded: list[ir.Value] = []
    blocks: list[ir.Value] = []
    parts: list[ir.Value] = []
    for plan in columns:
        if isinstance(plan, NumberColumn) and "" not in inputs:
            parts.append(_cast(g, inputs[plan.name], kind))
        elif isinstance(plan, DateColumn):
            parts += [_cast(g, part, kind) for part in _date(g, plan, inputs[plan.name])]
        elif isinstance(plan, CategoryColumn):
            (embedded if plan.encoding == "embedding" else blocks).append(
                _category(g, plan, inputs[plan.name])
            )
    if "" in inputs:
        parts = [_cast(g, inputs[""], kind)]
    found = _scaled(g, numbers, _concat(g, parts), np.float64 if wide else np.float32) if numbers else []
    return _concat(g, [*embedded, *found, *blocks])


def _numbers(plan: ColumnPlan) -> Sequence[NumberColumn]:
    if isinstance(plan, DateColumn):
        return plan.parts
    return (plan,) if isinstance(plan, NumberColumn) else ()


def _cast(g: Builder, x: ir.Value, kind: ir.DataType) -> ir.Value:
    return x if x.dtype == kind else g.Cast(x, to=int(kind))


def _concat(g: Builder, parts: Sequence[ir.Value]) -> ir.Value:
    return parts[0] if len(parts) == 1 else g.Concat(*parts, axis=1)


def _scaled(g: Builder, numbers: Sequence[NumberColumn], x: ir.Value, dtype: type) -> list[ir.Value]:
    """Scaled values, pieces and indicators of numbers [N, F], float32."""

    def row(values: Sequence[float]) -> Array:
        return np.array([values], dtype=dtype)

    missing = g.IsNaN(x)
    x = g.Where(missing, row([n.fill for n in numbers]), x)
    values, order = [], []
    for scale in dict.fromkeys(n.scale for n in numbers):
        places = [i for i, n in enumerate(numbers) if n.scale == scale]
        chosen = x if len(places) == len(numbers) else g.Gather(x, np.array(places), axis=1)
        own = [numbers[i] for i in places]
        if scale == "log":
            chosen = g.Log(g.Add(g.Max(g.Sub(chosen, row([n.shift for n in own])), row([0.0])), row([1.0])))
        elif scale == "yeo-johnson":
            chosen = _yeo_johnson(g, own, chosen, dtype)
        elif scale == "quantile":
            chosen = g.Div(
                g.ReduceSum(_pieces(g, [n.quantiles for n in own], chosen, dtype), [2], keepdims=0),
                row([len(n.quantiles) - 1 for n in own]),
            )
        values.append(chosen)
        order += own
    scaled = g.Div(g.Sub(_concat(g, values), row([n.mean for n in order])), row([n.std for n in order]))
    limit = row([np.inf if n.scale == "none" else _LIMIT for n in order])
    found = [_cast(g, g.Max(g.Min(scaled, limit), -limit), ir.DataType.FLOAT)]
    if places := [i for i, n in enumerate(numbers) if n.pieces]:
        chosen = x if len(places) == len(numbers) else g.Gather(x, np.array(places), axis=1)
        edges = [numbers[i].edges for i in places]
        most = max(len(e) for e in edges) - 1
        flat = g.Reshape(_pieces(g, edges, chosen, dtype), np.array([-1, len(places) * most]))
        real = [row * most + t for row, e in enumerate(edges) for t in range(len(e) - 1)]
        if len(real) < len(places) * most:
            flat = g.Gather(flat, np.array(real), axis=1)
        found.append(_cast(g, flat, ir.DataType.FLOAT))
    if places := [i for i, n in enumerate(numbers) if n.indicator]:
        told = missing if len(places) == len(numbers) else g.Gather(missing, np.array(places), axis=1)
        found.append(g.Cast(told, to=int(ir.DataType.FLOAT)))
    return found


def _pieces(g: Builder, edges: Sequence[Sequence[float]], x: ir.Value, dtype: type) -> ir.Value:
    """How much of each interval between edges lies below x: [N, F] → [N, F, T]."""
    most = max(len(e) for e in edges) - 1
    low: Array = np.full((1, len(edges), most), _FAR, dtype=dtype)
    width: Array = np.ones((1, len(edges), most), dtype=dtype)
    for column, own in enumerate(edges):
        count = len(own) - 1
        low[0, column, :count] = np.asarray(own, dtype)[:-1]
        width[0, column, :count] = np.diff(np.asarray(own, dtype))
    share = g.Div(g.Sub(g.Unsqueeze(x, np.array([2])), low), width)
    return g.Max(g.Min(share, np.ones(1, dtype)), np.zeros(1, dtype))


def _yeo_johnson(g: Builder, own: Sequence[NumberColumn], x: ir.Value, dtype: type) -> ir.Value:
    """((x+1)^λ − 1)/λ for x >= 0, −((1−x)^(2−λ) − 1)/(2−λ) below; logarithms where the power is 0.

    Source: Yeo & Johnson, "A new family of power transformations", Biometrika 87, 2000.
    """
    size = g.Add(g.Abs(x), np.ones(1, dtype))
    power: Array = np.array([[n.power for n in own]], dtype=dtype)

    def side(exponent: Array) -> ir.Value:
        flat = np.abs(exponent) < 1e-6
        safe: Array = np.where(flat, 1, exponent).astype(dtype)
        curved = g.Div(g.Sub(g.Pow(size, safe), np.ones(1, dtype)), safe)
        return g.Where(flat, g.Log(size), curved) if flat.any() else curved

    below = g.Less(x, np.zeros(1, dtype))
    return g.Where(below, g.Neg(side(2 - power)), side(power))


def _category(g: Builder, plan: CategoryColumn, x: ir.Value) -> ir.Value:
    levels = np.array([plan.levels], dtype=object)
    known = g.Cast(g.Equal(x, levels), to=int(ir.DataType.FLOAT))
    count = len(plan.levels)
    if plan.encoding == "embedding":
        return g.MatMul(known, np.arange(1, count + 1, dtype=np.float32)[:, None])
    found = [known]
    if plan.encoding == "ordinal":
        found = [g.MatMul(known, (np.arange(1, count + 1, dtype=np.float32) / np.float32(count))[:, None])]
    elif plan.encoding == "hashing":
        buckets = np.zeros((count, plan.size), dtype=np.float32)
        places = [zlib.crc32(level.encode("utf-8", "surrogatepass")) % plan.size for level in plan.levels]
        buckets[np.arange(count), places] = 1
        found = [g.MatMul(known, buckets)]
    nothing = None
    if plan.missing:
        equal = g.Cast(g.Equal(x, np.array([plan.missing], dtype=object)), to=int(ir.DataType.FLOAT))
        nothing = g.ReduceMax(equal, np.array([1]), keepdims=1)
        found.append(nothing)
    if plan.other:
        some = g.ReduceMax(known, np.array([1]), keepdims=1)
        some = some if nothing is None else g.Max(some, nothing)
        found.append(g.Sub(np.ones(1, np.float32), some))
    return _concat(g, found)


def _width(plan: CategoryColumn) -> int:
    own = {"one-hot": len(plan.levels), "hashing": plan.size}.get(plan.encoding, 1)
    return own if plan.encoding == "embedding" else own + plan.other + bool(plan.missing)


def _date(g: Builder, plan: DateColumn, x: ir.Value) -> list[ir.Value]:
    """The parts of dates [N, 1], float64 [N, 1] each, NaN where there is no date.

    The day number is that of Fliegel & Van Flandern, "A machine algorithm for processing calendar dates",
    Communications of the ACM 11, 1968; it counts days from Monday.
    """
    valid = g.RegexFullMatch(x, pattern=date_pattern(plan.order))
    separator = plan.order[1]
    example = separator.join({"y": "2000", "m": "1", "d": "1"}[field] for field in plan.order[::2])
    text = g.Where(valid, x, _word(example))
    # a time that is put behind gives every date one; its own, if it has one, comes before it
    halves = _fields(g, g.StringConcat(text, _word(" 0:0")), " ")
    joined = g.StringConcat(g.StringConcat(_at(g, halves, 0), _word("T")), _at(g, halves, 1))
    day, clock = (_at(g, _fields(g, joined, "T"), place) for place in (0, 1))
    numbers = {
        field: g.Cast(_at(g, _fields(g, day, separator), place), to=int(ir.DataType.INT64))
        for place, field in enumerate(plan.order[::2])
    }
    year, month, date = numbers["y"], numbers["m"], numbers["d"]
    wanted = {part.name.rpartition(".")[2] for part in plan.parts}
    found: dict[str, ir.Value] = {"year": year, "month": month, "day": date}
    if wanted & {"weekday", "elapsed"}:

        def n(value: int) -> Array:
            return np.array([value], dtype=np.int64)

        early = g.Div(g.Sub(n(14), month), n(12))
        years = g.Sub(g.Add(year, n(4800)), early)
        months = g.Sub(g.Add(month, g.Mul(early, n(12))), n(3))
        days = g.Add(date, g.Div(g.Add(g.Mul(months, n(153)), n(2)), n(5)))
        leaps = g.Add(g.Sub(g.Div(years, n(4)), g.Div(years, n(100))), g.Div(years, n(400)))
        julian = g.Sub(g.Add(g.Add(days, g.Mul(years, n(365))), leaps), n(32045))
        found["weekday"] = g.Mod(julian, n(7))
        found["elapsed"] = g.Sub(julian, n(plan.origin))
    if "hour" in wanted:
        found["hour"] = g.Cast(_at(g, _fields(g, clock, ":"), 0), to=int(ir.DataType.INT64))
    nothing = np.array([[np.nan]])
    return [
        g.Where(valid, g.Cast(found[part.name.rpartition(".")[2]], to=int(ir.DataType.DOUBLE)), nothing)
        for part in plan.parts
    ]


def _fields(g: Builder, x: ir.Value, separator: str) -> ir.Value:
    """Texts [N, 1] divided: [N, 1, fields]."""
    return g.emit("StringSplit", x, delimiter=separator, outputs=2)[0]


def _at(g: Builder, x: ir.Value, place: int) -> ir.Value:
    return g.Gather(x, np.array(place), axis=2)


def _word(text: str) -> Array:
    return np.array([[text]], dtype=object)
