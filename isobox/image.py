"""Images as code: what a sandbox begins with, said in steps, made once and kept by the server.

image = isobox.Image.base("python").pip_install("numpy==2.*").run("python3 -c 'import numpy'")
with isobox.Sandbox.create(image) as sandbox: ...
"""

import errno
import hashlib
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from isobox import calls, trees
from isobox.calls import Policy, without_none
from isobox.config import Config
from isobox.dockerfile import parse
from isobox.errors import ImageFailed, NotFound
from isobox.printable import for_terminal
from isobox.transport import Transport
from isobox.values import ImageInfo

OnLog = Callable[[str], object]
"""Takes a build's log as it comes."""

_WAIT_S: Final = 30


@dataclass(frozen=True, slots=True)
class _Local:
    """Files of this machine on their way into an image: (file or folder, name inside) each."""

    files: tuple[tuple[Path, str], ...]
    to: str

    def pack(self, target: IO[bytes]) -> str:
        """Write them as an archive: its digest."""
        with tempfile.TemporaryDirectory() as folder:
            for source, name in self.files:
                place = Path(folder) / name if name else Path(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                _copy(source, place)
            trees.pack(Path(folder), target)
        target.seek(0)
        return f"sha256:{hashlib.file_digest(target, 'sha256').hexdigest()}"  # type: ignore[arg-type]  # it reads


def _copy(source: Path, target: Path) -> None:
    import shutil

    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


@dataclass(frozen=True, slots=True)
class Image:
    """What an image is made of; each method gives another one. Nothing is done before `build` or a sandbox needs it."""

    below: "str | Image"
    registry: Mapping[str, Any] | None = None
    steps: tuple[Mapping[str, Any] | _Local, ...] = ()
    network: Policy | None = None

    # ---- beginnings

    @classmethod
    def base(cls, name: str = "python") -> "Image":
        """An image that the server has: python, data, node, base, or one of yours."""
        return cls(name)

    @classmethod
    def from_registry(cls, reference: str, *, secret: str | None = None, auth_host: str | None = None) -> "Image":
        """An image in a registry, HOST/REPOSITORY:TAG; secret names a secret that holds USER:PASSWORD.

        The password is sent to the registry and to hosts of its own domain; auth_host (HOST or HOST:PORT) is another
        one that may know it, where the registry gives its tokens there.
        """
        return cls("", without_none({"reference": reference, "secret": secret, "auth_host": auth_host}))

    @classmethod
    def from_dockerfile(cls, path: Path | str, *, context: Path | str | None = None) -> "Image":
        """What a Dockerfile says; context is the folder that it copies from, by default its own."""
        folder = Path(context) if context is not None else Path(path).parent
        plan = parse(Path(path).read_text())
        found = cls.from_registry(plan.base) if "/" in plan.base else cls.base(plan.base)
        for step in plan.steps:
            if isinstance(step, tuple):
                for source in step[0]:
                    if ".." in PurePosixPath(source).parts:
                        raise ValueError(f"{source} lies outside of {folder}")
                    to_folder = step[1].endswith("/") or len(step[0]) > 1
                    target = f"{step[1].rstrip('/')}/{Path(source).name}" if to_folder else step[1]
                    local = folder / source.lstrip("/")
                    found = found.copy_local(local, step[1] if local.is_dir() else target)
            else:
                found = replace(found, steps=(*found.steps, step))
        return found

    # ---- steps

    def _then(self, step: "Mapping[str, Any] | _Local") -> "Image":
        return replace(self, steps=(*self.steps, step))

    def run(self, *commands: str) -> "Image":
        """Run commands by the image's shell, as root; one that fails ends the build."""
        found = self
        for command in commands:
            found = found._then({"run": command})
        return found

    def pip_install(self, *packages: str) -> "Image":
        """Install Python packages: names, or what else pip takes."""
        return self.run(f"python3 -m pip install --no-cache-dir --break-system-packages {shlex.join(packages)}")

    def apt_install(self, *packages: str) -> "Image":
        """Install the distribution's packages."""
        install = f"DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {shlex.join(packages)}"
        return self.run(f"apt-get -q update && {install} && rm -rf /var/lib/apt/lists/*")

    def env(self, variables: Mapping[str, str] | None = None, **more: str) -> "Image":
        """Set variables for what runs later, in the build and in sandboxes."""
        return self._then({"env": {**(variables or {}), **more}})

    def workdir(self, path: str) -> "Image":
        """Set the working directory of what runs later; it is made."""
        return self._then({"workdir": path})

    def copy_local(self, source: Path | str, to: str) -> "Image":
        """Copy a local folder's contents into a folder inside, or a local file to a place inside."""
        found = Path(source)
        if not found.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(found))
        if found.is_dir():
            return self._then(_Local(((found, ""),), to))
        folder, _, name = to.rpartition("/")
        return self._then(_Local(((found, name or found.name),), folder or "/"))

    def with_network(self, policy: Policy) -> "Image":
        """What steps may reach: a preset's name or rules; by default the package indexes."""
        return replace(self, network=policy)

    # ---- and so

    def build(
        self,
        name: str | None = None,
        *,
        on_log: OnLog | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> ImageInfo:
        """Make it, or find it made; ImageFailed with the reason. Without a name it is named by what it is made of."""
        transport = Transport(Config.find(url, api_key))
        try:
            return self._build(transport, name, on_log)
        finally:
            transport.close()

    def _build(self, transport: Transport, name: str | None, on_log: OnLog | None) -> ImageInfo:
        if self.registry is not None and self.steps:
            below = replace(self, steps=())._build(transport, None, on_log)
            return replace(self, below=below.id, registry=None)._build(transport, name, on_log)
        if self.registry is not None:
            source: dict[str, Any] = {"registry": dict(self.registry)}
        else:
            base = self.below._build(transport, None, on_log).id if isinstance(self.below, Image) else self.below
            steps = [self._sent(transport, step) if isinstance(step, _Local) else dict(step) for step in self.steps]
            source = {"build": without_none({"base": base, "steps": steps, "network": self.network})}
            if not steps and name is None:
                return _get(transport, base)
        if name is None:
            name = f"auto-{hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:32]}"
            try:
                return _get(transport, name)
            except NotFound:
                pass
        made = ImageInfo.parse(transport.send(calls.images("POST", json={"name": name, **source})))
        return follow(transport, made, on_log)

    def _sent(self, transport: Transport, local: _Local) -> dict[str, Any]:
        with tempfile.TemporaryFile() as file:
            digest = local.pack(file)
            try:
                transport.send(calls.Call("HEAD", f"/v1/uploads/{digest}"))
            except NotFound:
                file.seek(0)
                transport.send(
                    calls.Call("PUT", f"/v1/uploads/{digest}", content=file, safe=False, read_timeout_s=None)
                )
        return {"copy": {"upload": digest, "to": local.to}}


def built(image: Image, url: str | None, api_key: str | None) -> str:
    """The id or name of an image, which is made if it has to be."""
    if isinstance(image.below, str) and not image.steps and image.registry is None:
        return image.below
    return image.build(url=url, api_key=api_key).id


def _get(transport: Transport, name: str) -> ImageInfo:
    found = ImageInfo.parse(transport.send(calls.images("GET", f"/{name}")))
    return found if found.state == "ready" else follow(transport, found, None)


def follow(transport: Transport, image: ImageInfo, on_log: OnLog | None) -> ImageInfo:
    """Follow an image that is being made to its end; ImageFailed if that is no good one."""
    if on_log is not None:
        for text in log(transport, image.id):
            on_log(text)
    while image.state == "building":
        call = calls.images("GET", f"/{image.id}/wait", params={"timeout_s": _WAIT_S})
        image = ImageInfo.parse(transport.send(call))
    if image.state != "ready":
        raise ImageFailed(image)
    return image


def log(transport: Transport, image: str) -> Iterator[str]:
    """What is told while an image is made."""
    rest = b""
    with transport.stream(calls.images("GET", f"/{image}/log", read_timeout_s=None)) as pieces:
        for piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data: "):
                    data = json.loads(line.removeprefix(b"data: ")).get("data")
                    if isinstance(data, str):
                        yield data


def to_stderr(text: str) -> None:
    """Prints a build's log where it is not in the way."""
    sys.stderr.write(for_terminal(text, sys.stderr))
    sys.stderr.flush()
