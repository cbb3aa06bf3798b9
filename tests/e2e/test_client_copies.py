"""Copies and contexts by the two clients and by the command line."""

import asyncio
import os
import subprocess
import sys

import pytest
from server import Server

from isobox import AsyncSandbox, ForkIncomplete, InvalidRequest, Sandbox


def test_blocking(server: Server) -> None:
    with Sandbox.create(url=server.url, api_key=server.key) as sandbox:
        assert sandbox.run("x = 20\nx + 1").text == "21"
        failed = sandbox.run("x +")
        assert failed.error is not None
        assert failed.error.name == "SyntaxError"
        with sandbox.context(env={"A": "b"}) as context:
            assert context.run("import os; os.environ['A']").text == "'b'"
        children = sandbox.fork(2, labels={"a": "b"})
        for n, child in enumerate(children):
            with child:
                assert (child.info.parent, child.info.labels) == (sandbox.id, {"a": "b"})
                assert child.run(f"x += {n}; x").text == str(20 + n)
        snapshot = sandbox.snapshot("kept", ttl_s=60)
        with Sandbox.create(snapshot=snapshot.id, url=server.url, api_key=server.key) as again:
            assert again.run("x").text == "20"
        assert sandbox.pause().state == "paused"
        assert sandbox.resume().state == "running"
        sandbox.exec(shell="cd /; python3 -m http.server 7000 > /dev/null 2>&1 &")
        assert sandbox.wait_for_port(7000)
        assert sandbox.ports() == [7000]
        assert sandbox.port_url(7000) == f"{server.url}/v1/sandboxes/{sandbox.id}/ports/7000/"
        with pytest.raises(InvalidRequest):
            sandbox.fork(0)


def test_asyncio(server: Server) -> None:
    async def work() -> None:
        async with await AsyncSandbox.create(url=server.url, api_key=server.key) as sandbox:
            assert (await sandbox.run("x = 1\nx")).text == "1"
            async with await sandbox.context() as context:
                assert (await context.run("'x' in globals()")).text == "False"
            children = await sandbox.fork(2)
            found = await asyncio.gather(*(child.run("x += 1; x") for child in children))
            assert [each.text for each in found] == ["2", "2"]
            for child in children:
                await child.terminate()
                await child.close()
            assert not await sandbox.wait_for_port(7000, timeout_s=0.1)

    asyncio.run(work())


def test_children_that_could_not_be_made_are_told_with_those_that_could() -> None:
    error = ForkIncomplete([], [{"code": "disk_full", "detail": "no room"}])
    assert str(error) == "1 of 1 children: no room"


def test_by_hand(server: Server) -> None:
    environment = server.environment | {
        "ISOBOX_URL": server.url,
        "ISOBOX_API_KEY": server.key,
        "PATH": os.environ["PATH"],
    }

    def isobox(*arguments: str, code: int = 0, given: str | None = None) -> str:
        command = [sys.executable, "-m", "isobox.cli.main", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, input=given)
        assert done.returncode == code, done.stderr
        return done.stdout

    with Sandbox.create(url=server.url, api_key=server.key) as sandbox:
        assert isobox("code", sandbox.id, "y = 6; print('out'); y * 7") == "out\n42\n"
        assert isobox("code", sandbox.id, given="y") == "6\n"
        isobox("code", sandbox.id, "1/0", code=1)
        child = isobox("fork", sandbox.id).strip()
        assert isobox("code", child, "y") == "6\n"
        isobox("kill", child)
        snapshot = isobox("snapshot", "create", sandbox.id, "--name", "by hand").strip()
        assert "by hand" in isobox("snapshot", "ls")
        isobox("snapshot", "rm", snapshot)
        assert snapshot not in isobox("snapshot", "ls")
        assert isobox("pause", sandbox.id) == "paused\n"
        assert isobox("resume", sandbox.id) == "running\n"
        assert isobox("ports", "ls", sandbox.id) == ""
