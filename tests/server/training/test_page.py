"""The page, in a headless Chromium: what it shows of a job, and what its buttons do."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from onward_client import AsyncClient
from onward_server import load_settings, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
)


KEYS = {"trainer": ["train", "predict"], "manager": ["manage"], "all": ["train", "manage", "predict"]}
USE = "document.getElementById('key').value = '{}'; document.getElementById('key').onchange(); 0"


class Page:
    """A page, driven by the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    async def run(self, script: str) -> Any:
        number = next(self._numbers)
        parameters = {"expression": script, "returnByValue": True}
        await self._socket.send_json({"id": number, "method": "Runtime.evaluate", "params": parameters})
        while True:
            answer = await self._socket.receive_json(timeout=30)
            if answer.get("id") == number:
                assert "exceptionDetails" not in answer["result"], answer
                return answer["result"]["result"].get("value")

    async def until(self, script: str) -> Any:
        for _ in range(600):
            if found := await self.run(script):
                return found
            await asyncio.sleep(0.1)
        raise AssertionError(f"{script}: not on the page: {await self.run('document.body.innerText')}")


@asynccontextmanager
async def opened(url: str, profile: Path) -> AsyncIterator[Page]:
    assert CHROMIUM is not None
    browser = await asyncio.create_subprocess_exec(
        CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", url, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert browser.stderr is not None
        while not (found := re.search(rb"ws://([\d.:]+)/", await browser.stderr.readline())):
            pass
        async with aiohttp.ClientSession() as session:
            targets: list[Any] = []
            while not (pages := [t for t in targets if t["type"] == "page"]):
                async with session.get(f"http://{found[1].decode()}/json") as answer:
                    targets = json.loads(await answer.text())
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        browser.terminate()
        await browser.wait()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
async def test_a_person_promotes_and_rolls_back(repository: Path, tmp_path: Path) -> None:
    settings = load_settings(
        repository=repository,
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        instances=1,
        keys=[
            {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "roles": roles}
            for name, roles in KEYS.items()
        ],
        training={"folder": tmp_path / "training", "nice": 0},
    )
    async with running(settings) as server, AsyncClient(server.address, timeout=120, key="all") as client:
        title = "<img src=x onerror='document.title=1'>"
        run = {"model": "mlp", "data": "iris", "epochs": 3}
        job = (await client.training.start(run, title=title)).id
        assert [event.kind async for event in client.training.watch(job)][-1] == "completed"
        await client.training.promote(job, "flowers")
        await client.predict("flowers", np.ones((1, 4), np.float32))
        async with opened(f"http://{server.http_address}/#{job}", tmp_path / "profile") as page:
            await page.until("document.getElementById('message')?.textContent.includes('give a key')")
            await page.run(USE.format("trainer"))
            await page.until("document.querySelectorAll('#loss polyline').length >= 2")
            assert await page.run("document.querySelectorAll('.confusion tr').length") == 4
            assert (
                await page.run("document.querySelector('#jobs tbody td:nth-child(5)').textContent") == title
            )
            await page.run("window.prompt = () => 'flowers'; window.confirm = () => true; 0")
            cells = (
                "[...document.querySelectorAll('#models tbody tr:first-child td')].map(c => c.textContent)"
            )
            await page.until(f"{cells}[6] === '1 agree'")
            name, version, state, answered, failed, milliseconds, *_ = await page.run(cells)
            assert (name, version, state, answered, failed) == ("flowers", "1", "ready", "1", "0")
            assert float(milliseconds) > 0
            press = (
                "(b => b && (b.click(), true))"
                "([...document.querySelectorAll('button')].find(b => b.textContent === '{}'))"
            )
            await page.until(press.format("Promote"))
            await page.until("document.getElementById('message').textContent.includes('the role')")
            await page.run(USE.format("manager"))
            await page.until(press.format("Promote"))
            await page.until(
                "document.getElementById('message').textContent === 'flowers: version 2 answers'"
            )
            await page.until("document.getElementById('models').innerText.includes('Roll back')")
            await page.until(press.format("Roll back"))
            text = "flowers: version 2 is withdrawn, 1 answers"
            await page.until(f"document.getElementById('message').textContent === '{text}'")
        assert (await client.metadata("flowers")).versions == ("1",)
