"""The peers, each with the same four deeds: create, exec, terminate. Whoever cannot be had here says why."""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from isolation.spec import Resources, oci_spec


class Peer(ABC):
    """One way to a gVisor sandbox; `name` is how the table calls it."""

    name: str

    @abstractmethod
    def create(self) -> None:
        """Make a sandbox that runs."""

    @abstractmethod
    def run(self, argv: Sequence[str]) -> None:
        """Run something in it to its end."""

    @abstractmethod
    def terminate(self) -> None:
        """End it and remove its traces."""

    def close(self) -> None:  # noqa: B027 - most leave nothing
        """Leave nothing behind."""


def _quiet(argv: Sequence[str]) -> None:
    # Without a timeout: with one, subprocess polls, in steps of up to 50 ms.
    null = subprocess.DEVNULL
    subprocess.run(argv, check=True, stdin=null, stdout=null, stderr=null)


class RunscCli(Peer):
    """runsc by its command line, on the same EROFS root."""

    name = "runsc CLI"

    def __init__(self, runsc: Path, image: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="isobox-bench-runsc-"))
        self._base = [
            str(runsc),
            "--root",
            str(self._folder / "state"),
            "--platform=systrap",
            "--network=none",
            "--ignore-cgroups",
        ]
        self._bundle = self._folder / "bundle"
        (self._bundle / "root").mkdir(parents=True)
        resources = Resources(cpu=2, memory_mb=1024, disk_mb=1024, pids=512)
        spec = oci_spec(
            hostname="bench", root=str(self._bundle / "root"), image=str(image), overlay="", resources=resources
        )
        spec["annotations"]["dev.gvisor.spec.rootfs.overlay"] = "memory"
        spec["process"]["args"] = ["/bin/sleep", "1000"]
        spec["process"]["env"] = ["PATH=/usr/local/bin:/usr/bin:/bin"]
        (self._bundle / "config.json").write_text(json.dumps(spec))
        self._count = 0

    @property
    def _id(self) -> str:
        return f"bench{self._count}"

    def create(self) -> None:
        self._count += 1
        _quiet([*self._base, "create", "--bundle", str(self._bundle), self._id])
        _quiet([*self._base, "start", self._id])

    def run(self, argv: Sequence[str]) -> None:
        _quiet([*self._base, "exec", "--user", "1000:1000", self._id, *argv])

    def terminate(self) -> None:
        _quiet([*self._base, "delete", "--force", self._id])

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class GvisorPackage(Peer):
    """The PyPI package `gvisor`: the host's own root file system, runsc by its command line."""

    name = "gvisor (PyPI)"

    def __init__(self, runsc: Path) -> None:
        from gvisor.sandbox import Sandbox

        self._make = Sandbox
        os.environ["PATH"] = f"{runsc.parent}:{os.environ['PATH']}"

    def create(self) -> None:
        self._sandbox = self._make()

    def run(self, argv: Sequence[str]) -> None:
        self._sandbox.exec(argv[0], *argv[1:])

    def terminate(self) -> None:
        self._sandbox.close()


class Podman(Peer):
    """podman with runsc, the same root file system imported as its image."""

    name = "podman + runsc"

    def __init__(self, runsc: Path, image: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="isobox-bench-podman-"))
        self._base = ["podman", "--root", str(self._folder / "root"), "--runroot", str(self._folder / "run")]
        self._base += ["--cgroup-manager=cgroupfs", "--storage-driver=overlay", "--events-backend=none"]
        self._base += ["--runtime", str(runsc), "--runtime-flag=network=none", "--runtime-flag=ignore-cgroups"]
        point = self._folder / "point"
        point.mkdir()
        _quiet(["mount", "-t", "erofs", "-o", "loop,ro", str(image), str(point)])
        try:
            with subprocess.Popen(["tar", "-C", str(point), "-c", "."], stdout=subprocess.PIPE) as tar:
                subprocess.run([*self._base, "import", "-", "bench"], stdin=tar.stdout, check=True, capture_output=True)
        finally:
            _quiet(["umount", str(point)])

    def create(self) -> None:
        run = ["run", "-d", "--name", "bench", "--network=none", "bench", "/bin/sleep", "1000"]
        _quiet([*self._base, *run])

    def run(self, argv: Sequence[str]) -> None:
        _quiet([*self._base, "exec", "bench", *argv])

    def terminate(self) -> None:
        _quiet([*self._base, "rm", "-f", "-t", "0", "bench"])

    def close(self) -> None:
        subprocess.run([*self._base, "system", "reset", "--force"], check=False, capture_output=True)
        shutil.rmtree(self._folder, ignore_errors=True)


class Ray(Peer):
    """Ray's `ray.experimental.sandbox`, by the runtime that its actor drives; no cluster, our image in its cache."""

    name = "ray sandbox"

    def __init__(self, runsc: Path, image: Path) -> None:
        from ray.experimental.sandbox import SandboxRuntime, image_manager
        from ray.experimental.sandbox._internal.image_utils import expected_extract_marker

        os.environ["PATH"] = f"{runsc.parent}:{os.environ['PATH']}"
        self._runtime = SandboxRuntime()
        # As if it had been pulled: the conversion is not timed, and its tools need not be here.
        self._folder = Path(self._runtime.image_manager.get_image_dir("isobox-bench"))
        self.close()
        self._folder.mkdir(parents=True)
        (self._folder / image_manager.ROOTFS_IMAGE).symlink_to(image)
        (self._folder / ".image_config.json").write_text(json.dumps({"config": {"Env": ["PATH=/usr/bin:/bin"]}}))
        (self._folder / ".extracted").write_text(expected_extract_marker())
        self._id = ""

    def create(self) -> None:
        self._id = self._runtime.create("isobox-bench", rootless=False, readonly=False, _ignore_cgroups=True)

    def run(self, argv: Sequence[str]) -> None:
        found = self._runtime.exec(self._id, list(argv))
        assert found.exit_code == 0, found

    def terminate(self) -> None:
        self._runtime.delete(self._id)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[-300:]


def available(runsc: Path, image: Path) -> tuple[list[Peer], list[str]]:
    """Those that work here, and why the others do not."""
    peers: list[Peer] = [RunscCli(runsc, image)]
    notes = []
    candidates: list[tuple[str, Callable[[], Peer], bool, str]] = [
        (GvisorPackage.name, lambda: GvisorPackage(runsc), _installed("gvisor"), "pip install -e '.[bench]'"),
        (Podman.name, lambda: Podman(runsc, image), shutil.which("podman") is not None, "apt-get install podman"),
        (Ray.name, lambda: Ray(runsc, image), _installed("ray"), "pip install -e '.[bench]'"),
    ]
    for name, make, there, mend in candidates:
        if not there:
            notes.append(f"{name}: not installed ({mend})")
            continue
        peer: Peer | None = None
        try:
            peer = make()
            peer.create()
            peer.run(["true"])
            peer.terminate()
            peers.append(peer)
        except Exception as error:  # a peer that fails is a line in the report, whatever its error
            notes.append(f"{name}: does not work here: {_reason(error)}")
            if peer is not None:
                with contextlib.suppress(Exception):
                    peer.terminate()
                peer.close()
    return peers, notes
