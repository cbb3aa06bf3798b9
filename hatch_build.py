"""Packs the server below isobox_server in a wheel, PID 1 built (docs/adr/0003-packing.md)."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = ("common", "isolation", "fs", "sandbox_api")


class PackServer(BuildHookInterface):  # type: ignore[type-arg, misc]
    """See the module."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the server's files to a standard wheel."""
        if version != "standard":
            return
        sys.path.insert(0, self.root)
        from isolation.guest import build

        init = build.binary(Path(self.directory))
        for package in PACKAGES:
            build_data["force_include"][str(Path(self.root) / package)] = f"isobox_server/{package}"
        build_data["force_include"][str(init)] = f"isobox_server/isolation/guest/{init.name}"
