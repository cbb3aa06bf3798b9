"""Processes by pidfd."""

import asyncio
import os
import resource
import subprocess

from common.tasks import TaskOwner
from isolation.pidfd import Process


def test_any_number_wait_for_one_end() -> None:
    async def scenario(process: Process) -> None:
        async with TaskOwner() as tasks:
            waiting = [tasks.spawn(process.wait(), name=f"waiter {n}") for n in range(3)]
            await asyncio.sleep(0)
            waiting[2].cancel()
            await asyncio.sleep(0)
            process.kill()
            async with asyncio.timeout(5):
                await asyncio.gather(*waiting[:2])

    with subprocess.Popen(["sleep", "60"]) as child:
        process = Process(child.pid)
        asyncio.run(scenario(process))
        assert process.ended
        process.close()


def test_the_end_is_seen_beyond_descriptor_1023() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1024)]
    try:
        with subprocess.Popen(["sleep", "60"]) as child:
            process = Process(child.pid)
            assert process.fd > 1023
            assert not process.ended
            process.kill()
            child.wait()
            assert process.ended
            process.close()
    finally:
        for fd in many:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
