"""Requests under one Idempotency-Key take turns."""

import asyncio
from pathlib import Path

from starlette.types import Message, Receive, Scope, Send

from sandbox_api.auth import OPERATOR, Entry, Keys
from sandbox_api.gate import Gate, Websockets
from sandbox_api.in_flight import InFlight
from sandbox_api.metrics import Metrics
from sandbox_api.store.store import Store

KEY = "k" * 30


def test_while_one_request_of_a_key_is_served_no_other_is(tmp_path: Path) -> None:
    """The first fails: the second, which waited, and a third that comes then both have to be served, not at once."""
    serving = most = served = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal serving, most, served
        serving, served = serving + 1, served + 1
        most = max(most, serving)
        for _ in range(10):
            await asyncio.sleep(0)
        serving -= 1
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            answers.append(message["body"])

    async def ask() -> None:
        headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"idempotency-key", b"once")]
        await gate({"type": "http", "path": "/v1/sandboxes", "method": "POST", "headers": headers}, receive, send)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ask())
            group.create_task(ask())
            while len(answers) < 1:
                await asyncio.sleep(0)
            for _ in range(5):
                await asyncio.sleep(0)
                group.create_task(ask())

    answers: list[bytes] = []
    store = Store(tmp_path / "store.db")
    keys = Keys([Entry(OPERATOR, KEY, "here")])
    websockets, in_flight = Websockets(most=1, per_caller=1), InFlight()
    gate = Gate(app, keys=keys, store=store, metrics=Metrics(), websockets=websockets, in_flight=in_flight)
    asyncio.run(run())
    assert (served, most) == (7, 1)
