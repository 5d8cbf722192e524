"""Our server passes the conformance program; a server that is wrong does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conformance.__main__ import CHECKS, results, write_models

from onward_server import ServerThread
from onward_server.dataplane import DataPlane
from serving import settings


def test_the_server_passes_all_of_it(tmp_path: Path) -> None:
    write_models(tmp_path)
    chosen = settings(
        tmp_path,
        http_listen="127.0.0.1:0",
        model_control="explicit",
        isolation="thread",
        shared_memory=True,
        trace={"endpoint": "http://127.0.0.1:9/v1/traces", "rate": 0},
    )
    with ServerThread(chosen) as server:
        found = list(results(server.address, server.http_address))
    assert [entry for entry in found if entry[0] != "PASS"] == []
    assert len(found) == len(CHECKS) == 40


def test_what_is_not_advertised_is_skipped_and_nothing_else(tmp_path: Path) -> None:
    write_models(tmp_path)
    with ServerThread(settings(tmp_path, http_listen="127.0.0.1:0", isolation="thread")) as server:
        found = list(results(server.address, server.http_address))
    skipped = [why.removesuffix(" is not advertised") for outcome, _, why in found if outcome == "SKIP"]
    assert [outcome for outcome, *_ in found if outcome not in ("PASS", "SKIP")] == []
    assert sorted(skipped) == [*["model_repository"] * 3, *["system_shared_memory"] * 2, *["trace"] * 2]


def test_a_wrong_server_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = DataPlane.infer

    async def swapped(plane: DataPlane, request: Any) -> Any:
        answer = await right(plane, request)
        names = list(answer.outputs)
        object.__setattr__(
            answer, "outputs", dict(zip(names, reversed(list(answer.outputs.values())), strict=True))
        )
        return answer

    monkeypatch.setattr(DataPlane, "infer", swapped)
    write_models(tmp_path)
    with ServerThread(settings(tmp_path, http_listen="127.0.0.1:0", isolation="thread")) as server:
        found = list(results(server.address, server.http_address))
    assert {title for outcome, title, _ in found if outcome == "FAIL"} >= {"grpc: raw contents are answered"}
    assert "SKIP" in {outcome for outcome, _, _ in found}
