"""Packs the server below isobox_server in a wheel, its guest programs built (docs/adr/0003-packing.md)."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = ("common", "isolation", "fs", "netpolicy", "gpu", "sandbox_api")


class PackServer(BuildHookInterface):  # type: ignore[type-arg, misc]
    """See the module."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the server's files to a standard wheel."""
        if version != "standard":
            return
        sys.path.insert(0, self.root)
        from isolation.guest import build

        for package in PACKAGES:
            build_data["force_include"][str(Path(self.root) / package)] = f"isobox_server/{package}"
        for program in (build.INIT, build.FILES, build.RESEED, build.LAYER, build.MOUNT):
            built = build.binary(Path(self.directory), program)
            build_data["force_include"][str(built)] = f"isobox_server/isolation/guest/{built.name}"
