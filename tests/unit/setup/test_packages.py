"""The lock that `make setup` installs from: whole, by digest, and of no index in particular."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
LOCK = (ROOT / "setup" / "packages.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> list[tuple[Requirement, list[str]]]:
    """(what is pinned, its digests)."""
    found = []
    lines = (line for line in LOCK.splitlines() if not line.startswith("#"))
    for entry in re.split(r"(?<!\\)\n", "\n".join(lines)):
        requirement, *options = re.split(r"\s*\\\n\s*", entry.strip())
        if requirement:
            found.append((Requirement(requirement), options))
    return found


def test_every_package_is_pinned_with_its_digests_and_nothing_else() -> None:
    assert len(pins()) > 50
    for requirement, options in pins():
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert requirement.url is None
        assert options, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", option) for option in options), requirement
    assert not re.search(r"://|--index|--extra-index|--find-links|--trusted", LOCK)


def wanted(extra: str) -> list[Requirement]:
    """What an extra of ours names, and the extras that it names of ours."""
    found = []
    for text in PROJECT["project"]["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == "isobox":
            for further in requirement.extras:
                found += wanted(further)
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_has_what_the_project_asks_for(python: str) -> None:
    environment = {str(name): str(value) for name, value in default_environment().items()}
    environment |= {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    have = {
        canonicalize_name(requirement.name): next(iter(requirement.specifier)).version
        for requirement, _ in pins()
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }
    own = [Requirement(text) for text in (*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"])]
    for requirement in (*own, *wanted("dev")):
        version = have.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement}: run `make lock`"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: run `make lock`"
