"""What the base images hold, each built from the distribution's packages when first asked for."""

from collections.abc import Iterator

import pytest
from server import Server

from isobox import Sandbox


@pytest.fixture(scope="module")
def node(server: Server) -> Iterator[Sandbox]:
    with Sandbox.create("node", url=server.url, api_key=server.key, timeout_s=600) as found:
        yield found


# The first use of an image on a machine builds it.
@pytest.mark.timeout(600)
def test_node_runs_and_its_errors_are_read(node: Sandbox) -> None:
    assert node.exec("node", "-p", "6 * 7").stdout == "42\n"
    assert node.exec("npm", "--version").exit_code == 0
    missing = node.exec("node", "-e", "require('no-such-module')")
    assert missing.error is not None
    assert missing.error.name == "Error"
    assert "npm install no-such-module" in missing.error.hint
    code = "function f(n) { if (n) f(n - 1); else null.x }\nf(2)"
    thrown = node.exec("node", "-e", code)
    assert thrown.error is not None
    assert thrown.error.name == "TypeError"
    assert [frame.function for frame in thrown.error.frames][-3:] == ["f", "f", "f"]
    assert node.exec("node", "-e", "process.exit(3)").error is None


@pytest.mark.timeout(600)
def test_base_is_minimal(server: Server) -> None:
    with Sandbox.create("base", url=server.url, api_key=server.key) as base:
        assert base.exec("curl", "--version").exit_code == 0
        assert base.exec("python3").outcome.reason == "not_found"  # type: ignore[union-attr]
