"""A program inside that floods the websocket it was asked for: others have their turn, and nothing grows."""

import asyncio
from typing import Any, cast

import pytest
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from sandbox_api.host.interface import Ports
from sandbox_api.proxy.websocket import FRAGMENTS_MAX, Upstream


class Program:
    """The program's end of the connection: the wire."""

    def __init__(self, flood: bytes) -> None:
        self.server = ServerProtocol()
        self._flood = flood

    async def transmit(self, _: str, data: bytes) -> bool:
        self.server.receive_data(data)
        return True

    async def receive(self, _: str) -> bytes:
        for event in self.server.events_received():
            if not isinstance(event, Frame):
                self.server.send_response(self.server.accept(event))  # type: ignore[arg-type]
                return b"".join(self.server.data_to_send())
        flood, self._flood = self._flood, b""
        return flood

    def end_transmission(self, _: str) -> None: ...


def run(flood: bytes) -> tuple[list[Any], int, Program]:
    """What came of it, in how many turns of the loop."""

    async def whole() -> tuple[list[Any], int, Program]:
        program = Program(flood)
        upstream = Upstream(cast(Ports, program), "con", target="/", port=80, subprotocols=[])
        await upstream.open([])
        turns, messages = 0, []

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.get_running_loop().create_task(others())
        while (message := await upstream.receive()) is not None:
            messages.append(message)
        beside.cancel()
        return messages, turns, program

    return asyncio.run(whole())


def frame(opcode: Opcode, data: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=False)


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG])
def test_tiny_frames_are_parsed_in_turns(opcode: Opcode) -> None:
    _, turns, _ = run(frame(opcode, b"") * 32768)
    assert turns >= 60  # 64 KiB, 1 KiB at a time


def test_large_messages_come_whole() -> None:
    sent = [bytes([n]) * 300_000 for n in range(3)]
    messages, turns, _ = run(b"".join(frame(Opcode.BINARY, data) for data in sent))
    assert messages == sent
    assert turns < 60


def test_empty_fragments_are_bounded() -> None:
    flood = frame(Opcode.TEXT, b"", fin=False) + frame(Opcode.CONT, b"", fin=False) * (FRAGMENTS_MAX * 4)
    messages, _, program = run(flood)
    assert messages == []
    closed = program.server.close_rcvd
    assert closed is not None
    assert (closed.code, closed.reason) == (1008, f"a message has at most {FRAGMENTS_MAX} fragments")
