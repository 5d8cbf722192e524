"""Who may call what, and the log of who did."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias, final

from onward_server.errors import PermissionDeniedError, UnauthenticatedError
from onward_server.settings import KeySettings, Role

__all__ = ["CHANGES", "AccessLog", "Need", "authorize", "request_id", "trace_id"]

_LOG = logging.getLogger("onward_server.access")
_FAILURES_A_SECOND = 10
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_PREFIX = os.urandom(4).hex()
_NUMBERS = itertools.count(1)

Need: TypeAlias = Role | Literal["read", "nothing"]
"""What a call needs: a role; `read`: any key; `nothing`."""

CHANGES: frozenset[Need] = frozenset(("manage", "train"))
"""Roles of calls that change what is served: all of these are in the access log."""


def authorize(keys: Sequence[KeySettings], headers: Mapping[str, str], need: Need) -> str:
    """The name of the key that a call brings in `authorization: Bearer ...` or `x-api-key`.

    Args:
        keys: empty: everybody may do everything.
        headers: of the call, names in lower case.
        need: what the call needs.

    Returns:
        The key's name; empty where none is needed.

    Raises:
        UnauthenticatedError: no key, or an unknown one.
        PermissionDeniedError: it lacks the role.
    """
    if not keys or need == "nothing":
        return ""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    secret = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if not secret:
        raise UnauthenticatedError("give a key in `authorization: Bearer ...` or `x-api-key`")
    digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
    # every key is compared, in constant time: how long it takes tells nothing
    found = [key for key in keys if hmac.compare_digest(key.sha256, digest)]
    if not found:
        raise UnauthenticatedError("the key is unknown")
    if need != "read" and not any(need in key.roles for key in found):
        raise PermissionDeniedError(f"the key {found[0].name!r} does not have the role {need!r}")
    return found[0].name


def request_id(given: str) -> str:
    """The id of a request in logs: the client's where it is printable and short, else one of ours."""
    return given if _ID.fullmatch(given) else f"{_PREFIX}-{next(_NUMBERS)}"


def trace_id(headers: Mapping[str, str]) -> str:
    """The id of the trace that a call is part of, as its `traceparent` says; empty: of none."""
    found = _TRACE.fullmatch(headers.get("traceparent", ""))
    return "" if found is None else found[1]


@final
class AccessLog:
    """One JSON line a call: answered ones by a share, failures up to some a second, the others counted.

    Args:
        share: gives the share of answered calls to log; read at each call.
    """

    def __init__(self, share: Callable[[], float]) -> None:
        self._share = share
        self._sum = 0.0
        self._second = 0
        self._failures = 0
        self._suppressed: dict[str, int] = {}

    def takes(self, code: str, *, always: bool = False) -> bool:
        """Count a call that ended with `code` (gRPC's by name, or HTTP's), and whether to `write` it.

        Args:
            code: what it ended with.
            always: whether it is written whatever the share is, where it was answered.
        """
        if code in ("OK", "200"):
            if always:
                return True
            self._sum += self._share()
            if self._sum < 1:
                return False
            self._sum -= 1
            return True
        return self._may_log(code)

    def write(
        self, *, transport: str, call: str, code: str, start: float, identity: str, **fields: object
    ) -> None:
        """Log one call that `takes` chose.

        Args:
            transport: `grpc` or `http`.
            call: the method or the path's pattern.
            code: gRPC code by name, or the HTTP status.
            start: `time.perf_counter()` at its arrival.
            identity: its request id.
            fields: further ones; those that are empty are left out.
        """
        entry = {
            "transport": transport,
            "call": call,
            "code": code,
            "ms": round((time.perf_counter() - start) * 1e3, 3),
            "request_id": identity,
            **{name: value for name, value in fields.items() if value},
        }
        _LOG.info("%s", json.dumps(entry), extra={"entry": entry})

    def _may_log(self, code: str) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            if self._suppressed:
                entry = {"failures_not_logged": self._suppressed}
                _LOG.warning("%s", json.dumps(entry), extra={"entry": entry})
            self._second, self._failures, self._suppressed = second, 0, {}
        self._failures += 1
        if self._failures <= _FAILURES_A_SECOND:
            return True
        self._suppressed[code] = self._suppressed.get(code, 0) + 1
        return False
