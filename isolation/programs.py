"""A program inside a sandbox for the host's own ends: run to its end, its words not kept."""

from typing import Final

from isolation.channel.frames import StartFlag, encode_request
from isolation.channel.inbox import Inbox
from isolation.channel.link import Link

_START_TIMEOUT_S: Final = 10.0


async def run_as_root(link: Link, argv: list[str]) -> int:
    """Run it as root of the sandbox: its exit code, 128 and more for a signal; StartFailed."""
    inbox = Inbox()
    request = encode_request(user="root", cwd="/", argv=[each.encode() for each in argv], env={})
    flags = StartFlag.ROOT_OK | StartFlag.NO_STDIN
    guest = await link.start(inbox, request, flags=flags, timeout=_START_TIMEOUT_S)
    try:
        async for _ in inbox.pieces(link, guest):
            pass
    finally:
        if not guest.complete.done():
            link.abandon(guest)
        else:
            link.forget(guest)
    report = guest.account.report
    assert report is not None
    return report.code + (128 if report.signalled else 0)
