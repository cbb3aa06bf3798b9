"""Names of kinds: what a vendor calls "NVIDIA A100-SXM4-80GB" is `a100-80gb` here. Pure."""

import re
from typing import Final

ANY: Final = "any"
KIND: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,31}")

_NOISE: Final = re.compile(
    r"\b(nvidia|tesla|geforce|quadro|graphics|device|pcie|sxm\d?|nvl|hbm\d?e?|gb\d+x?|generation|ada|laptop|gpu)\b"
)
_MEMORY: Final = re.compile(r"\b(\d+)\s?gb\b")
_SLICE: Final = re.compile(r"\bmig (\d+g\.\d+gb)\b")
_SEVERAL_SIZES: Final = {"a100": (40, 80), "v100": (16, 32), "h100": (80, 96)}
"""Kinds that are sold with several memories; the name tells which, but of an H100, where 80 goes without saying."""


def kind_of(name: str, memory_mb: int) -> str:
    """The kind of a device by its vendor's name; memory in MiB."""
    text = name.lower().replace("_", " ").replace("-", " ")
    part = _SLICE.search(text)
    text = _SLICE.sub(" ", text)
    said = _MEMORY.search(text)
    text = _NOISE.sub(" ", _MEMORY.sub(" ", text))
    kind = re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:24] or "gpu"
    if kind in _SEVERAL_SIZES:
        size = int(said[1]) if said else min(_SEVERAL_SIZES[kind], key=lambda each: abs(each - memory_mb / 1000))
        if kind != "h100" or size > 80:
            kind = f"{kind}-{size}gb"
    return f"{kind}.{part[1]}" if part else kind


def fits(kind: str, wanted: str) -> bool:
    """Whether a device of a kind is what is wanted: `any`, the kind itself, or its family (`a100` of `a100-80gb`).

    A slice is wanted by its whole name alone.
    """
    if wanted == kind:
        return True
    if "." in kind:
        return False
    return wanted == ANY or (kind.startswith(f"{wanted}-") and kind.removeprefix(f"{wanted}-").endswith("gb"))
