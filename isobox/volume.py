"""Volumes: files that outlive sandboxes.

volume = isobox.Volume.create("data")
with isobox.Sandbox.create(volumes={"/data": volume}) as sandbox:
    sandbox.exec(shell="echo 1 > /data/x")
    sandbox.commit("/data")
"""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from isobox import calls, trees
from isobox.bucket import Bucket
from isobox.config import Config
from isobox.errors import ConflictError
from isobox.transport import Transport
from isobox.values import FileInfo


class Volume:
    """A volume; `info` as the server told it last."""

    def __init__(self, config: Config, info: dict[str, Any]) -> None:
        """Use `create`, `get` or `list`."""
        self._config = config
        self.info = info

    def _send(self, call: calls.Call) -> Any:
        return _send(self._config, call)

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.info["name"])

    def __repr__(self) -> str:
        return f"<Volume {self.name} version {self.info['version']}>"

    @classmethod
    def create(
        cls,
        name: str,
        *,
        quota_mb: int = 1024,
        exist_ok: bool = True,
        url: str | None = None,
        api_key: str | None = None,
    ) -> "Volume":
        """A volume of that name, made if there is none; without exist_ok ConflictError if there is one. MiB."""
        config = Config.find(url, api_key)
        try:
            return cls(config, _send(config, calls.volumes("POST", json={"name": name, "quota_mb": quota_mb})))
        except ConflictError:
            if not exist_ok:
                raise
            return cls(config, _send(config, calls.volumes("GET", f"/{name}")))

    @classmethod
    @contextmanager
    def ephemeral(
        cls, *, quota_mb: int = 1024, url: str | None = None, api_key: str | None = None
    ) -> Iterator["Volume"]:
        """One for the time of the block."""
        made = cls.create(f"ephemeral-{token_hex(12)}", quota_mb=quota_mb, url=url, api_key=api_key)
        try:
            yield made
        finally:
            made.delete()

    @classmethod
    def get(cls, name: str, *, url: str | None = None, api_key: str | None = None) -> "Volume":
        """One that exists; NotFound."""
        config = Config.find(url, api_key)
        return cls(config, _send(config, calls.volumes("GET", f"/{name}")))

    @classmethod
    def list(cls, *, url: str | None = None, api_key: str | None = None) -> Iterator["Volume"]:
        """All, by name."""
        config = Config.find(url, api_key)
        for raw in _send(config, calls.volumes("GET"))["volumes"]:
            yield cls(config, raw)

    def files(self, path: str = "/") -> "Iterator[FileInfo]":
        """What a folder of it holds, as it was committed last."""
        found = self._send(calls.volumes("GET", f"/{self.name}/files/list", params={"path": path}))
        return iter([FileInfo.parse(each) for each in found["entries"]])

    def read(self, path: str) -> bytes:
        """A file's bytes."""
        call = calls.volumes("GET", f"/{self.name}/files", params={"path": path}, read_timeout_s=None)
        found: bytes = self._send(call)
        return found

    def upload(self, source: Path | str, path: str = "/") -> None:
        """Lay a local folder's contents, or one file, over a folder of it; that is a commit."""
        with tempfile.TemporaryFile() as file:
            trees.pack(Path(source), file)
            file.seek(0)
            parts = {"params": {"path": path}, "content": file, "safe": False, "read_timeout_s": None}
            self.info = self._send(calls.volumes("PUT", f"/{self.name}/archive", **parts))

    def download(self, target: Path | str, path: str = "/") -> None:
        """Copy a folder's contents into a local folder, which is made; nothing is written outside of it."""
        params = {"path": path, "format": "tar.gz"}
        call = calls.volumes("GET", f"/{self.name}/archive", params=params, read_timeout_s=None)
        with tempfile.TemporaryFile() as file:
            with closing(Transport(self._config)) as transport, transport.stream(call) as pieces:
                for piece in pieces:
                    file.write(piece)
            file.seek(0)
            trees.unpack(file, Path(target))

    def snapshot(self, name: str | None = None) -> str:
        """Keep its files as they are now: the snapshot's id."""
        self.info = self._send(calls.volumes("POST", f"/{self.name}/snapshots", json={"name": name}))
        return str(self.info["snapshots"][-1]["id"])

    def restore(self, snapshot: str) -> None:
        """Let its files be again what a snapshot kept."""
        self.info = self._send(calls.volumes("POST", f"/{self.name}/restore", json={"snapshot": snapshot}))

    def delete(self) -> None:
        """Delete it and its snapshots."""
        self._send(calls.volumes("DELETE", f"/{self.name}"))


def _send(config: Config, call: calls.Call) -> Any:
    with closing(Transport(config)) as transport:
        return transport.send(call)


Volumes = dict[str, "str | Volume | Bucket | dict[str, Any]"]
"""What lies where in a sandbox: by path, a volume, its name, {"name", "read_only"}, or a bucket."""


def as_asked(volumes: "Volumes | None") -> dict[str, Any]:
    """As the API takes them: the fields `volumes` and `buckets`, those that there are."""
    found: dict[str, dict[str, Any]] = {}
    for path, each in (volumes or {}).items():
        if isinstance(each, Bucket):
            found.setdefault("buckets", {})[path] = each.as_asked()
        else:
            name = each.name if isinstance(each, Volume) else each
            found.setdefault("volumes", {})[path] = {"name": name} if isinstance(name, str) else name
    return found
