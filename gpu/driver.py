"""Whether runsc speaks the driver's ABI. Pure.

Source: gVisor g3doc/user_guide/gpu.md; `runsc nvproxy list-supported-drivers`.
"""

import re

from gpu.errors import GpuUnusable

_VERSION = re.compile(r"^\d+\.\d+(\.\d+)?$", re.MULTILINE)


def parse_supported(output: str) -> list[str]:
    """The versions in the output of `list-supported-drivers`, in its order."""
    return [match[0] for match in _VERSION.finditer(output)]


def choose_abi(driver: str, supported: list[str], override: str) -> str:
    """What to give as --nvproxy-driver-version; GpuUnusable, with the mend, if nothing fits.

    override is the operator's word: "" for none, "latest", or a version.
    """
    if override == "latest" and supported:
        return max(supported, key=_numbers)
    if override:
        if override not in supported:
            raise GpuUnusable(
                f"runsc does not know the driver ABI {override}", hint=f"it knows {_listed(supported)}, and `latest`"
            )
        return override
    if driver in supported:
        return driver
    newer = bool(supported) and _numbers(driver) > max(map(_numbers, supported))
    raise GpuUnusable(
        f"runsc does not know NVIDIA's driver {driver or '(unknown)'}: it knows {_listed(supported)}",
        hint=(
            "install a newer runsc, or let it use its newest ABI with ISOBOX_GPU_DRIVER_ABI=latest"
            if newer
            else "install one of these drivers, or name the nearest one with ISOBOX_GPU_DRIVER_ABI"
        ),
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _listed(supported: list[str]) -> str:
    return ", ".join(supported[-4:]) if supported else "none"
