import asyncio
from pathlib import Path

from server import Server

from isobox import AsyncSandbox


def test_the_asyncio_client_does_what_the_blocking_one_does(server: Server, tmp_path: Path) -> None:
    async def work() -> None:
        where = {"url": server.url, "api_key": server.key}
        async with await AsyncSandbox.create(labels={"suite": "async"}, **where) as sandbox:
            result = (await sandbox.exec("echo", "hi")).check()
            assert result.stdout == "hi\n"
            results = await asyncio.gather(*(sandbox.exec(shell=f"exit {i}") for i in range(5)))
            assert [each.exit_code for each in results] == list(range(5))
            process = await sandbox.start("sh", "-c", "read x; echo got $x")
            await process.write("it\n")
            events = [event async for event in process]
            assert b"".join(event.data for event in events if event.type == "stdout") == b"got it\n"
            (tmp_path / "a").write_bytes(b"x" * 100_000)
            await sandbox.files.upload(tmp_path / "a", "/tmp/a")
            await sandbox.files.download("/tmp/a", tmp_path / "b")
            assert (tmp_path / "b").read_bytes() == b"x" * 100_000
            assert [entry.path for entry in await sandbox.files.list("/tmp")] == ["/tmp/a"]
            again = await AsyncSandbox.connect(sandbox.id, **where)
            assert again.info.labels == {"suite": "async"}
            await again.close()
        assert sandbox.info.state == "terminated"

    asyncio.run(work())
