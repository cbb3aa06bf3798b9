"""What waits in this machine's pool: fresh sandboxes, and those that go on from a template already."""

import asyncio
import json
from contextlib import nullcontext

from common.ids import new_id
from isolation.errors import SnapshotUnusable
from isolation.execlog import EventType
from isolation.execs import Exec
from isolation.files import operate
from isolation.pool import Shape
from isolation.sandbox import Sandbox
from isolation.snapshots import Maker, SnapshotFolder
from isolation.spec import BARE
from sandbox_api.host.interface import Template, TemplateExec
from sandbox_api.host.local_execs import LocalExecs
from sandbox_api.host.local_gpus import furnish as furnish_gpus

_TOUCH_TIMEOUT_S = 10.0


class Templates:
    """Brings the pool's sandboxes into their shapes."""

    def __init__(self, snapshots: SnapshotFolder, maker: Maker, execs: LocalExecs) -> None:
        self._snapshots = snapshots
        self._maker = maker
        self._execs = execs
        self._templates: dict[str, Template] = {}

    def add(self, template: Template) -> None:
        """One to make sandboxes of, when the pool asks."""
        self._templates[template.copy.name] = template

    def forget(self, name: str) -> bool:
        """None of it any more; whether there was one."""
        return self._templates.pop(name, None) is not None

    async def furnish(self, shape: Shape, sandbox: Sandbox) -> dict[str, str]:
        """See `isolation.pool.Furnish`."""
        if shape.copy:
            if (template := self._templates.get(shape.copy)) is None:
                raise SnapshotUnusable("the snapshot was deleted")
            return await self._restore(template, sandbox)
        if shape.started:
            await sandbox.start()
            async with operate(sandbox.link, "stat", "/", user="0", allow_root=True) as first:
                await first.result()  # the first process of a sandbox takes twice as long as others
            if shape.equipment != BARE:
                await furnish_gpus(sandbox)
        return {}

    async def discard(self, sandbox: Sandbox) -> None:
        """End one that nobody has claimed."""
        self._execs.drop_all(sandbox.id)
        await sandbox.destroy()
        self._execs.remove_logs(sandbox.id)

    async def _restore(self, template: Template, sandbox: Sandbox) -> dict[str, str]:
        own: dict[int, tuple[str, str]] = {}
        guests = []
        for each in template.execs:
            id_ = new_id("exe")
            exec_ = _begun(sandbox, id_, each)
            self._execs.add(sandbox.id, id_, exec_)
            own[each.number] = each.id, id_
            guests.append(exec_.prepare_resume(each.number))
        opened = await asyncio.to_thread(self._snapshots.open, template.copy.name, template.copy.digest, self._maker)
        try:
            with opened.reading() as fds:
                missing = await sandbox.restore(fds, guests, rename=True)
        finally:
            opened.close()
        for number in missing:
            self._execs.drop(sandbox.id, own.pop(number)[1])
        for _, id_ in own.values():
            self._execs.get(sandbox.id, id_).resumed(sandbox.link, nullcontext())
        for each in template.execs:
            if each.touch and each.number in own:
                await _touch(self._execs.get(sandbox.id, own[each.number][1]), each.touch)
        await sandbox.named()
        return dict(own.values())


def _begun(sandbox: Sandbox, id_: str, template: TemplateExec) -> Exec:
    """An exec of a copy, its log in the sandbox's own folder until somebody claims it."""
    folder = sandbox.folder / "logs"
    folder.mkdir(mode=0o700, exist_ok=True)
    exec_ = Exec(template.spec, folder / id_)
    said = {"exec_id": id_, "argv": template.argv, "forked_from": template.id}
    exec_.log.append(EventType.STARTED, json.dumps(said).encode())
    for type_, data in zip((EventType.STDOUT, EventType.STDERR), template.rest, strict=True):
        if data:
            exec_.log.append(type_, data)
    return exec_


async def _touch(exec_: Exec, data: bytes) -> None:
    """Have it answer once: restored memory is not mapped yet, and the first to use it would wait for that."""
    before = exec_.log.last
    async with asyncio.timeout(_TOUCH_TIMEOUT_S):
        await exec_.write_input(data)
        await exec_.changed(before, "")
    exec_.unfollow("")
