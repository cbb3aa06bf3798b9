"""Where runsc comes from, and that it is what was published: setup/runsc.sh with a site of our own."""

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolation import digests

ROOT = Path(__file__).parents[3]
SCRIPT = """
set -euo pipefail
step() { echo "> $*"; }
fail() { echo "FAIL: $*"; exit 1; }
. setup/runsc.sh
runsc_from_distribution() { return 1; }
install_runsc
"""


def binary(release: str) -> bytes:
    return f"#!/bin/sh\necho runsc version release-{release}\n".encode()


def publish(site: Path, name: str, content: bytes, *, digest: str | None = None) -> None:
    folder = site / name / "x86_64"
    folder.mkdir(parents=True)
    (folder / "runsc").write_bytes(content)
    told = digest or hashlib.sha512(content).hexdigest()
    (folder / "runsc.sha512").write_text(f"{told}  runsc\n")


def setup(tmp_path: Path, **environment: str) -> str:
    (tmp_path / "cache").mkdir(exist_ok=True)
    given = {
        "PATH": "/usr/bin:/bin",
        "ISOBOX_CACHE": str(tmp_path / "cache"),
        "ISOBOX_RUNSC_SITE": f"file://{tmp_path}/site",
    }
    done = subprocess.run(
        ["bash", "-c", SCRIPT], cwd=ROOT, env=given | environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def installed(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "runsc" / "runsc"


def test_the_newest_release_is_what_it_is_published_as(tmp_path: Path) -> None:
    publish(tmp_path / "site", "latest", binary("20260817.0"))
    assert "FAIL" not in setup(tmp_path)
    found = digests.known(installed(tmp_path), tmp_path / "cache")
    assert found is not None
    assert (found.release, found.source) == ("20260817", "gVisor's release, as published")
    assert digests.change(installed(tmp_path), tmp_path / "cache") is None


def test_what_is_not_what_is_published_is_not_used(tmp_path: Path) -> None:
    publish(tmp_path / "site", "latest", binary("20260817.0"), digest="0" * 128)
    assert "FAIL" in setup(tmp_path)
    assert not installed(tmp_path).exists()


def test_a_pinned_release_is_that_release(tmp_path: Path) -> None:
    publish(tmp_path / "site", "latest", binary("20260817.0"))
    publish(tmp_path / "site", "20240729", binary("20240729.0"))
    publish(tmp_path / "site", "20250101", binary("20240729.0"))
    setup(tmp_path)
    assert "FAIL" not in setup(tmp_path, ISOBOX_RUNSC_RELEASE="20240729")
    assert installed(tmp_path).read_bytes() == binary("20240729.0"), "though there was another"
    assert "says that it is another" in setup(tmp_path, ISOBOX_RUNSC_RELEASE="20250101")


@pytest.mark.parametrize(
    ("published", "told"),
    [
        (binary("20240729.0"), "as gVisor publishes 20240729.0"),
        (b"another build", "not gVisor's own build"),
        (None, "could not be had"),
    ],
)
def test_one_that_is_there_is_compared_once(tmp_path: Path, published: bytes | None, told: str) -> None:
    own = tmp_path / "own runsc"
    own.write_bytes(binary("20240729.0"))
    own.chmod(0o755)
    if published is not None:
        publish(tmp_path / "site", "20240729", published)
    assert told in setup(tmp_path, ISOBOX_RUNSC=str(own))
    assert told not in setup(tmp_path, ISOBOX_RUNSC=str(own)), "once"
    found = digests.known(own, tmp_path / "cache")
    assert found is not None
    assert told in found.source


def test_a_changed_binary_is_told_and_a_touched_one_is_not(tmp_path: Path) -> None:
    publish(tmp_path / "site", "latest", binary("20260817.0"))
    setup(tmp_path)
    path, cache = installed(tmp_path), tmp_path / "cache"
    path.touch()
    assert digests.change(path, cache) is None
    assert "FAIL" not in setup(tmp_path)
    path.write_bytes(binary("20260817.0") + b"# evil\n")
    assert "is not what setup saw" in str(digests.change(path, cache))
    assert "FAIL" in setup(tmp_path), "nor does another set-up make it known"
    assert "is not what setup saw" in str(digests.change(path, cache))
    (cache / "runsc" / "digests").unlink()  # whoever changed it says so
    assert "FAIL" not in setup(tmp_path)
    assert digests.change(path, cache) is None


def test_an_upgrade_to_what_is_published_is_known(tmp_path: Path) -> None:
    publish(tmp_path / "site", "latest", binary("20240729.0"))
    publish(tmp_path / "site", "20260817", binary("20260817.0"))
    setup(tmp_path)
    path, cache = installed(tmp_path), tmp_path / "cache"
    path.write_bytes(binary("20260817.0"))
    assert "FAIL" not in setup(tmp_path)
    assert digests.change(path, cache) is None


@given(st.text())
def test_no_line_is_too_odd(text: str) -> None:
    digests.parse(text)
