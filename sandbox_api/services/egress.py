"""What sandboxes may do outside: policies resolved and applied, refusals told to whoever they concern."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from common.turns import turn_budget
from fs import authorities
from isolation.execlog import Event, EventType, LogReader
from isolation.files import FileFailed
from netpolicy import presets
from netpolicy.gateway.credentials import placeholder
from netpolicy.match import Rules
from netpolicy.policy import document, joined, parse
from sandbox_api.host.interface import CLOSED, Credentials, Egress, Host, Policy
from sandbox_api.lifecycle import State
from sandbox_api.metrics import Metrics
from sandbox_api.problems import Problem, invalid, sandbox_ended
from sandbox_api.services.registry import Live, Registry
from sandbox_api.services.secrets import SecretService
from sandbox_api.settings import Settings
from sandbox_api.store.records import ExecRecord, SandboxRecord

Asked = str | Mapping[str, Any] | None
_BUNDLE_MAX: Final = 4 << 20
_EVENTS_EACH_MAX: Final = 200
_RECORD_COST: Final = 8 << 10
_REPEATED_S: Final = 1.0


@dataclass(slots=True)
class _Told:
    """Which refusals a sandbox was told of of late, so that a program that tries for ever fills no log."""

    at: dict[str, float] = field(default_factory=dict)
    count: int = 0


class EgressService:
    """The use cases of networks."""

    def __init__(
        self, settings: Settings, host: Host, registry: Registry, secrets: SecretService, metrics: Metrics
    ) -> None:
        self._host = host
        self._registry = registry
        self._secrets = secrets
        self._metrics = metrics
        self._presets = dict(settings.egress_presets)
        self._told: dict[str, _Told] = {}

    # ---- policies

    async def policy(self, asked: Asked) -> Policy:
        """The policy that a request means now; 422 where it cannot be."""
        if asked is None:
            return CLOSED
        name, rest = presets.resolve(asked, self._presets)
        own = parse(rest)
        if name is not None:
            own = joined(await self._preset(name), own)
        rules = Rules(own)
        for n, each in enumerate(own.inject):
            if not rules.host(each.host, 443).allowed:
                raise invalid(
                    f"inject[{n}]: no rule allows {each.host} port 443", f'add {{"host": "{each.host}"}} to `allow`'
                )
        return own

    async def _preset(self, name: str) -> Policy:
        if (found := self._presets.get(name)) is None:
            found = await asyncio.to_thread(presets.built_in, name)
            if found is None:
                known = ", ".join([*presets.BUILT_IN, *sorted(set(self._presets) - set(presets.BUILT_IN))])
                raise invalid(f"there is no network preset {name!r}", f"known are: {known}")
            self._presets[name] = found
        return found

    async def begin(self, record: SandboxRecord, asked: Asked) -> Egress:
        """Give a record a policy, and say what it means; 422 where a secret is missing."""
        policy = await self.policy(asked)
        for name in sorted(policy.secrets()):
            if await self._secrets.value(record.tenant, name) is None:
                raise invalid(f"there is no secret {name!r}", f"store it first: PUT /v1/secrets/{name}")
        record.network_asked = asked if asked is None or isinstance(asked, str) else dict(asked)
        record.network = document(policy)
        record.network_generation += 1
        for each in policy.inject:
            if each.env is not None and each.env not in record.placeholders:
                secret = await self._secrets.value(record.tenant, each.secret)
                # Not in place: a copy of the sandbox may share what there was.
                record.placeholders = {**record.placeholders, each.env: placeholder(secret or "")}
        return await self._egress(record, policy)

    async def again(self, record: SandboxRecord) -> Egress:
        """What a record's policy means today: presets as they are now, secrets as they are now."""
        policy = await self.policy(record.network_asked)
        record.network = document(policy)
        return await self._egress(record, policy)

    async def _egress(self, record: SandboxRecord, policy: Policy) -> Egress:
        if not policy.inject:
            return Egress(policy, Credentials(), record.network_generation)
        secrets = {}
        for name in policy.secrets():
            if (value := await self._secrets.value(record.tenant, name)) is not None:
                secrets[name] = value
        marks = {each.env: record.placeholders[each.env] for each in policy.inject if each.env is not None}
        authority = await self._secrets.authority(record.tenant)
        return Egress(policy, Credentials(secrets, marks, authority), record.network_generation)

    async def replace(self, tenant: str, id_: str, asked: Asked) -> SandboxRecord:
        """Another policy, from now on: when this returns, nothing that it refuses gets another byte through."""
        record = await self._registry.record(tenant, id_)
        live = self._registry.live.get(id_)
        if live is None:
            raise _ended(record)
        async with live.moving:  # neither while it is being paused nor while it wakes
            if record.state not in (State.RUNNING, State.PAUSED):
                raise _ended(record)
            egress = await self.begin(record, asked)
            # First: should the next step fail, a later one (a retry, a restart) must not go back to what it was.
            await self._registry.store.save_sandbox(record)
            if not live.parked:
                await self._host.networks.apply(id_, egress)
                await self.trust(record, egress)
        live.events.add("network_policy", generation=record.network_generation)
        return record

    async def secret_changed(self, tenant: str, name: str) -> None:
        """Sandboxes that use a secret use its new value from now on, or none if it is gone."""
        for live in list(self._registry.live.values()):
            record = live.record
            uses = any(each["secret"] == name for each in (record.network or {}).get("inject", []))
            if record.tenant == tenant and uses and not live.parked:
                async with live.moving:
                    if not live.parked:
                        await self._host.networks.apply(record.id, await self.again(record))

    # ---- inside

    async def trust(self, record: SandboxRecord, egress: Egress) -> None:
        """Have a sandbox's programs accept the certificates that the gateway shows to hosts with credentials."""
        authority = egress.credentials.authority
        if authority is None:
            return
        certificate = authority.certificate.encode()
        bundles = authorities.BUNDLES
        found = {path: text for path in bundles if (text := await self._bundle(record.id, path)) is not None}
        found.setdefault(authorities.BUNDLE, next(iter(found.values()), b""))
        for path, text in found.items():
            if certificate not in text:
                whole = text.rstrip() + b"\n" + certificate
                await self._host.system_files.write(record.id, path, len(whole), 0o644, _once(whole), "0")

    async def _bundle(self, sandbox: str, path: str) -> bytes | None:
        found = bytearray()
        try:
            async for piece in self._host.system_files.read(sandbox, path, 0, _BUNDLE_MAX, "0"):
                if isinstance(piece, bytes):
                    found += piece
        except FileFailed:
            return None
        return bytes(found)

    @staticmethod
    def environment(record: SandboxRecord, *, has_authorities: bool) -> dict[str, str]:
        """Return the variables for its programs: placeholders, and where certificates are found.

        has_authorities: the machine's own lie in every image (ISOBOX_CA_BUNDLE).
        """
        injects = bool((record.network or {}).get("inject"))
        variables = dict.fromkeys(authorities.VARIABLES, authorities.BUNDLE) if injects or has_authorities else {}
        return variables | record.placeholders if injects else variables

    # ---- the audit

    async def log(
        self, tenant: str, id_: str, after: int, limit: int, wait_s: float
    ) -> tuple[list[dict[str, Any]], int]:
        """Records beyond a seq, and the seq to go on from; waits for one if there is none yet."""
        await self._registry.record(tenant, id_)
        found, last = self._read(id_, after, limit)
        if not found and wait_s > 0:
            try:
                async with asyncio.timeout(wait_s):
                    await self._host.networks.changed(id_, last, "")
            except TimeoutError:
                return [], last
            found, last = self._read(id_, after, limit)
        return found, last

    def _read(self, id_: str, after: int, limit: int) -> tuple[list[dict[str, Any]], int]:
        path: Path = self._host.networks.log_path(id_)
        found: list[dict[str, Any]] = []
        try:
            with LogReader(path) as reader:
                while len(found) < limit and (events := reader.read(after)):
                    for event in events:
                        after = event.seq
                        if isinstance(event, Event):
                            found.append(_shown(event))
                        else:
                            found.append({"seq": event.seq, "event": "gap"})
                        if len(found) == limit:
                            break
        except FileNotFoundError:
            return [], after
        return found, after

    async def watch(self, tell: Callable[[ExecRecord, EventType, bytes], None]) -> None:
        """Tell sandboxes, and by `tell` what runs in them, of what was refused, for ever."""
        turn = turn_budget()
        while True:
            id_, record = await self._host.networks.next_record()
            await turn.take(_RECORD_COST)
            self._metrics.egress.labels(record["event"], record["verdict"]).inc()
            live = self._registry.live.get(id_)
            if live is not None and record["verdict"] == "refuse" and self._worth_telling(id_, record):
                self._tell(live, record, tell)

    def _worth_telling(self, id_: str, record: dict[str, Any]) -> bool:
        told, now = self._told.setdefault(id_, _Told()), time.monotonic()
        key = json.dumps([record.get(name) for name in ("event", "name", "destination", "port", "rule", "sni", "host")])
        if now - told.at.get(key, -_REPEATED_S) < _REPEATED_S or told.count >= _EVENTS_EACH_MAX:
            return False
        told.at = {name: at for name, at in told.at.items() if now - at < _REPEATED_S} | {key: now}
        told.count += 1
        return True

    def _tell(self, live: Live, record: dict[str, Any], tell: Callable[[ExecRecord, EventType, bytes], None]) -> None:
        names = ("name", "destination", "port", "proto", "sni", "host", "rule", "reason", "hint")
        about = {name: record[name] for name in names if name in record}
        live.events.add("network", verdict="refused", **about)
        payload = json.dumps({"verdict": "refused", **about}).encode()
        for each in list(live.execs.values()):
            tell(each, EventType.NETWORK, payload)

    def forget(self, id_: str) -> None:
        """It has ended."""
        self._told.pop(id_, None)


def _ended(record: SandboxRecord) -> Problem:
    return sandbox_ended(record.state, (record.termination or {}).get("reason"))


def _shown(event: Event) -> dict[str, Any]:
    record = json.loads(event.payload)
    record["at"] = datetime.fromtimestamp(record["at"], UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for name in ("boot", "sandbox"):
        record.pop(name, None)
    return {**record, "seq": event.seq}


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
