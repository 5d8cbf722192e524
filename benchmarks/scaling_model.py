"""A model of data-parallel steps: a measured schedule of buckets, replayed on a network for many ranks.

Each rank computes the same; an all-reduce of n bytes among R ranks takes 2 (R - 1) / R n / bandwidth +
2 ceil(log2 R) latency (R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective communication
operations in MPICH", IJHPCA 2005). Exchanges come one after the other. Ranks that are slower than others now
and then, and links that are shared, are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["NETWORKS", "RANKS", "Network", "Schedule", "efficiency", "plot"]

RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SHORT = 64.0
"""Bytes of what is exchanged besides gradients, before and behind the backward pass."""


@dataclass(frozen=True)
class Network:
    """What an all-reduce costs.

    Attributes:
        latency: seconds of a message without contents.
        bandwidth: bytes a second.
        cores: of the one machine that all ranks share, and that do the copying; None: each rank has its own.
    """

    latency: float
    bandwidth: float
    cores: int | None = None

    def all_reduce(self, nbytes: float, ranks: int) -> float:
        """Seconds that so many ranks need to sum so many bytes."""
        if ranks == 1:
            return 0.0
        shared = 1.0 if self.cores is None else max(1.0, ranks / self.cores)
        sent = 2 * (ranks - 1) / ranks * nbytes / self.bandwidth
        return shared * (sent + 2 * math.ceil(math.log2(ranks)) * self.latency)


NETWORKS = {"10 Gbit/s Ethernet": Network(20e-6, 1.1e9), "100 Gbit/s InfiniBand": Network(2e-6, 11e9)}
"""As is typical."""


@dataclass(frozen=True)
class Schedule:
    """One step of one rank, as measured.

    Attributes:
        step: seconds.
        buckets: when each bucket of gradients is ready, in seconds from the start of the step, and its bytes.
        wait: when the first sum is needed; the update follows.
    """

    step: float
    buckets: Sequence[tuple[float, float]]
    wait: float

    def faster(self, times: float) -> Schedule:
        """The same of ranks that compute so many times as fast."""
        return Schedule(self.step / times, [(at / times, n) for at, n in self.buckets], self.wait / times)

    def replay(self, network: Network, ranks: int, *, hidden: bool, turn: float | None = None) -> float:
        """Seconds of a step on so many ranks.

        Args:
            network: between them.
            ranks: how many.
            hidden: whether an exchange goes on while the rank computes, as with network cards that do it by
                themselves; otherwise only while the rank waits, as MPI libraries do it without a thread.
            turn: what it costs to bring ranks together that have computed, which those that share cores do
                not do at once; None: a message.
        """
        free = 0.0 if hidden else self.wait
        for ready, nbytes in self.buckets:
            free = max(free, ready) + network.all_reduce(nbytes, ranks)
        waited = max(0.0, free - self.wait)
        short = network.all_reduce(_SHORT, ranks)
        return self.step + waited + 2 * (short if turn is None else max(short, turn))


def efficiency(schedule: Schedule, network: Network, ranks: int, *, hidden: bool) -> float:
    """The share of its time in which a rank computes."""
    return schedule.step / schedule.replay(network, ranks, hidden=hidden)


_COLOURS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee"),
    *("#aa3377", "#777777", "#000000", "#ee7733", "#009988"),
)
_WIDTH, _HEIGHT, _LEFT, _TOP = 330, 230, 44, 34


def plot(schedules: Mapping[str, Schedule]) -> str:
    """An SVG: efficiency over the number of ranks, hidden (full lines) and not (broken lines)."""
    count = len(NETWORKS)
    width, height = count * (_WIDTH + _LEFT) + 175, _HEIGHT + _TOP + 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{height}" fill="white"/>'
    ]
    for panel, (label, network) in enumerate(NETWORKS.items()):
        left = _LEFT + panel * (_WIDTH + _LEFT)
        parts.append(f'<text x="{left + _WIDTH / 2}" y="20" text-anchor="middle">{label}</text>')
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            y = _y(share)
            parts.append(f'<path d="M{left} {y:.1f}h{_WIDTH}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.2f}</text>')
        for ranks in RANKS:
            x = left + _x(ranks)
            parts.append(f'<text x="{x:.1f}" y="{_TOP + _HEIGHT + 16}" text-anchor="middle">{ranks}</text>')
        for (_, schedule), colour in zip(schedules.items(), _COLOURS, strict=False):
            for hidden, dash in ((True, ""), (False, ' stroke-dasharray="4 3"')):
                points = " ".join(
                    f"{left + _x(r):.1f},{_y(efficiency(schedule, network, r, hidden=hidden)):.1f}"
                    for r in RANKS
                )
                parts.append(
                    f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>'
                )
    base = count * (_WIDTH + _LEFT) + 14
    for row, (name, colour) in enumerate(zip(schedules, _COLOURS, strict=False)):
        y = _TOP + 10 + 18 * row
        parts.append(f'<path d="M{base} {y}h18" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{base + 24}" y="{y + 4}">{name}</text>')
    middle = count * (_WIDTH + _LEFT) / 2
    parts.append(
        f'<text x="{middle}" y="{_TOP + _HEIGHT + 36}" text-anchor="middle">ranks of one thread each; '
        "full lines: exchanges behind computing, broken: only while waiting</text></svg>"
    )
    return "\n".join(parts) + "\n"


def _x(ranks: int) -> float:
    low, high = math.log2(RANKS[0]), math.log2(RANKS[-1])
    return 8 + (math.log2(ranks) - low) / (high - low) * (_WIDTH - 16)


def _y(share: float) -> float:
    return _TOP + (1 - share) * _HEIGHT
