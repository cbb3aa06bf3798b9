"""What a server needs of its machine, checked one by one, each with a way to mend it."""

import asyncio
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import IsoboxError
from fs.bases import apt_sources
from isolation import cgroups, digests, runsc
from isolation.guest import build
from isolation.platforms import choose_platform
from isolation.snapshots import Copy
from netpolicy import nft
from netpolicy.floor import Floor
from netpolicy.gateway import nflog
from netpolicy.nftables import Nftables
from netpolicy.plan import PROBE_TAG, Place
from netpolicy.presets import from_urls, machine_indexes
from sandbox_api.host import sweeping
from sandbox_api.host.leftovers import UNKNOWN, belongings, gone
from sandbox_api.host.local_gpus import LocalGpus
from sandbox_api.settings import Settings

LOCAL_AUTHORITIES = Path("/usr/local/share/ca-certificates")
OLDEST_KERNEL = (5, 15)
_FREE_MB = 2048


@dataclass(frozen=True, slots=True)
class Check:
    """A finding; problem is None where all is well."""

    name: str
    found: str = ""
    problem: str | None = None
    mend: str = ""


def checks() -> Iterator[Check]:
    """Each check in turn; one that cannot even be made is a problem."""
    settings = Settings.from_environment()
    for name, look in _CHECKS.items():
        try:
            yield Check(name, look(settings))
        except IsoboxError as error:
            yield Check(name, problem=error.detail, mend=error.hint)
        except OSError as error:
            yield Check(name, problem=str(error))


def _root(_: Settings) -> str:
    if os.geteuid() != 0:
        raise IsoboxError("you are not root", hint="run this, and `isobox serve`, with sudo")
    return "yes"


def _architecture(_: Settings) -> str:
    if platform.machine() != "x86_64":
        raise IsoboxError(f"{platform.machine()} is not supported yet", hint="use an x86_64 machine")
    return platform.machine()


def _kernel(_: Settings) -> str:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if numbers < OLDEST_KERNEL:
        raise IsoboxError(f"Linux {release} is too old", hint="use Linux 5.15 or newer (Debian 12, Ubuntu 22.04)")
    return release


def _cgroups(_: Settings) -> str:
    layout = cgroups.detect()
    if layout.unified is not None:
        have = set((layout.unified / "cgroup.controllers").read_text().split())
        if missing := {"cpu", "memory", "pids"} - have:
            raise IsoboxError(f"cgroup v2 without {', '.join(sorted(missing))}", hint="enable the controllers at boot")
        return "v2"
    if missing := {"cpu", "memory", "pids"} - set(layout.v1):
        raise IsoboxError(f"no cgroup controller {', '.join(sorted(missing))}", hint="mount cgroup2 on /sys/fs/cgroup")
    return "v1" if "freezer" in layout.v1 else "v1, without a freezer: sandboxes that nobody uses are not stopped"


def _reaper(_: Settings) -> str:
    """An orphan's zombie must go away: sandboxes become orphans when their server is replaced."""
    script = "sleep 0.05 & echo $!"
    pid = int(subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            raise IsoboxError(
                "process 1 does not reap orphans", hint="in a container, start it with an init (docker run --init)"
            )
        time.sleep(0.02)
    return "process 1 reaps orphans"


def _runsc(settings: Settings) -> str:
    found = asyncio.run(_probe(settings))
    if (change := digests.change(found.path, settings.cache)) is not None:
        raise IsoboxError(change, hint=digests.HINT)
    idle = "" if found.bears_freezing else "; it parks what is idle: nothing is frozen"
    return f"{found.path}, release {found.release}, platform {found.platform} works{idle}"


async def _probe(settings: Settings) -> runsc.Runsc:
    return await choose_platform(await runsc.find(settings.runsc, settings.cache), settings.platform)


def _init(settings: Settings) -> str:
    return str(build.binary(settings.cache))


def _tool(name: str, package: str) -> Callable[[Settings], str]:
    def look(_: Settings) -> str:
        if (path := shutil.which(name)) is None:
            raise IsoboxError(f"{name} is not installed", hint=f"apt-get install {package}")
        return path

    return look


def _sources(_: Settings) -> str:
    return str(apt_sources())


def _copies(settings: Settings) -> str:
    place = next(path for path in (settings.state, *settings.state.parents) if path.exists())
    Copy(place).close()
    return f"{place} can hold them"


def _space(settings: Settings) -> str:
    place = next(path for path in (settings.cache, *settings.cache.parents) if path.exists())
    free = shutil.disk_usage(place).free >> 20
    if free < _FREE_MB:
        raise IsoboxError(f"{free} MiB free below {place}", hint=f"make {_FREE_MB} MiB free, or set ISOBOX_CACHE")
    return f"{free} MiB free below {place}"


def _network(settings: Settings) -> str:
    """The kernel takes our rules, and tells of what they refuse: tried in a table of its own."""
    if not settings.network:
        return "off (ISOBOX_NETWORK=0): sandboxes have a loopback alone"
    nftables, place = Nftables(), Place(PROBE_TAG, next(settings.egress_block.subnets(new_prefix=26)))
    try:
        nftables.run(nft.base(place, Floor(), []))
        nflog.subscribe(place.log_group).close()
    finally:
        nftables.run(nft.removed(place))
        nftables.close()
    if not settings.egress().resolvers:
        raise IsoboxError("no IPv4 resolver in /etc/resolv.conf", hint="name one with ISOBOX_EGRESS_DNS=ADDRESS:PORT")
    dropping = [each for each in ("FORWARD", "INPUT") if _drops(each)]
    if dropping:
        return f"works; but iptables drops by default ({', '.join(dropping)}): let the links ib* pass there"
    return "rules, log and resolver work"


def _drops(chain: str) -> bool:
    if shutil.which("iptables") is None:
        return False
    done = subprocess.run(["iptables", "-S", chain], capture_output=True, text=True, check=False)
    return f"-P {chain} DROP" in done.stdout


def _gpus(settings: Settings) -> str:
    return asyncio.run(_look_for_gpus(settings))


async def _look_for_gpus(settings: Settings) -> str:
    with tempfile.TemporaryDirectory() as folder:
        gpus = LocalGpus(
            await runsc.find(settings.runsc, settings.cache),
            Path(folder),
            enabled=settings.gpus,
            abi=settings.gpu_driver_abi,
            library_folder=settings.gpu_libraries,
            scrub=settings.gpu_scrub,
        )
        try:
            return await gpus.check()
        finally:
            gpus.close()


def _authorities(settings: Settings) -> str:
    count = len(settings.ca_bundle)
    if count:
        return f"sandboxes and builds accept {count} certificates of ISOBOX_CA_BUNDLE"
    if own := sorted(LOCAL_AUTHORITIES.rglob("*.crt")):
        return (
            f"this machine accepts {len(own)} of its own ({', '.join(path.name for path in own)[:120]}), sandboxes do "
            "not: where downloads pass a proxy, set ISOBOX_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt"
        )
    return "none but the distribution's"


def _packages(_: Settings) -> str:
    hosts = len(from_urls(machine_indexes()).allow)
    return f"the preset `packages` allows {hosts} hosts" if hosts else "the preset `packages` allows none: no index set"


def _leftovers(_: Settings) -> str:
    """Tell what is on this machine, by whose it is; what is nobody's any more is in no server's way."""
    found = belongings(sweeping.survey())
    left = gone(found)
    dead = f"dead servers left {'; '.join(each.words() for each in left)}: run `isobox doctor --sweep`"
    servers = []
    for owned in found:
        if owned not in left:
            pid = f", pid {owned.owner.pid}" if owned.owner.pid else ""
            servers.append(f"{owned.owner.state or UNKNOWN} ({owned.standing}{pid})")
    return f"{dead if left else 'none'}; servers: {', '.join(servers) or 'none'}"


def swept(only: Path | None) -> Iterator[str]:
    """Remove what dead servers left, and say what that was; only: by servers of this state directory."""
    removed, _ = asyncio.run(sweeping.sweep(only=only))
    yield from (each.words() for each in removed)


_CHECKS: dict[str, Callable[[Settings], str]] = {
    "root": _root,
    "architecture": _architecture,
    "kernel": _kernel,
    "cgroups": _cgroups,
    "orphans": _reaper,
    "mkfs.erofs": _tool("mkfs.erofs", "erofs-utils"),
    "mmdebstrap": _tool("mmdebstrap", "mmdebstrap"),
    "apt sources": _sources,
    "disk": _space,
    "copies": _copies,
    "network": _network,
    "packages": _packages,
    "authorities": _authorities,
    "init": _init,
    "runsc": _runsc,
    "gpus": _gpus,
    "leftovers": _leftovers,
}
