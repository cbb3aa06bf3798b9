"""Which runsc it is, and what that means."""

from pathlib import Path

import pytest

from isolation.errors import RunscError
from isolation.runsc import Runsc, parse_version


@pytest.mark.parametrize(
    ("output", "release"),
    [
        ("runsc version 0.0~20240729.0\nspec: 1.0.2-dev\n", "20240729.0"),
        ("runsc version release-20260817.0\nspec: 1.2.1\n", "20260817.0"),
        ("runsc version release-20260817.0-70-g3c5eee17d\nspec: 1.2.1\n", "20260817.0"),
        ("runsc version 20240401\n", "20240401"),
    ],
)
def test_its_release(output: str, release: str) -> None:
    assert parse_version(output) == release


@pytest.mark.parametrize("output", ["", "runsc version VERSION_MISSING\n", "bash: runsc: not found"])
def test_none_that_can_be_told(output: str) -> None:
    with pytest.raises(RunscError, match="cannot tell the release"):
        parse_version(output)


@pytest.mark.parametrize(
    ("release", "can"),
    [
        ("20240729.0", (False, True, False, False, False)),
        ("20250602.0", (False, True, False, False, False)),
        ("20250603.0", (True, True, False, False, False)),
        ("20251208.0", (True, False, False, False, False)),
        ("20251215.0", (True, False, True, False, False)),
        ("20260618.0", (True, False, True, False, False)),
        ("20260817.0", (True, False, True, True, True)),
    ],
)
def test_what_it_can(release: str, can: tuple[bool, ...]) -> None:
    found = Runsc(Path("/usr/bin/runsc"), release)
    changes, freezing, descriptors = found.bounds_overlays, found.bears_freezing, found.guards_descriptors
    assert (changes, freezing, descriptors, found.names_at_restore, found.makes_links_itself) == can
