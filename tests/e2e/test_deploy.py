"""Apps that stay: versions, roll-back, schedules, functions by name."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from server import Server, until

import isobox

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(120)


def cli(server: Server, *argv: str, fails: bool = False) -> str:
    environment = os.environ | {"ISOBOX_URL": server.url, "ISOBOX_API_KEY": server.key, "NO_COLOR": "1"}
    command = [sys.executable, "-m", "isobox.cli.main", *argv]
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stdout + done.stderr


def by_name(server: Server, name: str, app: str = "deployed") -> isobox.Deployed:
    return isobox.Function.from_name(app, name, url=server.url, api_key=server.key)


def test_what_is_deployed_stays_and_runs_by_itself(own_server: Server) -> None:
    own_server.start()
    assert cli(own_server, "deploy", "deployed_app.py") == "deployed version 1: double, tick, report, Counter\n"
    with by_name(own_server, "double") as double, by_name(own_server, "Counter.plus") as plus:
        assert double.remote(4) == 8
        assert plus.remote(2) == 7
        assert list(double.map(range(3))) == [0, 2, 4]
    with own_server.client() as http:

        def tick() -> dict[str, str]:
            return http.get("/v1/apps/deployed").json()["functions"]["tick"]  # type: ignore[no-any-return]

        until(lambda: tick()["last_call"] is not None)
        first = tick()["last_call"]
        until(lambda: tick()["last_call"] != first)
        until(lambda: "tick | tick" in cli(own_server, "app", "logs", "deployed"))
        own_server.kill()
        time.sleep(2.5)  # it comes due twice meanwhile, and runs once for both
        own_server.start()
        before = tick()["last_call"]
        until(lambda: tick()["last_call"] != before)
    listed = cli(own_server, "app", "ls")
    assert "report" in listed
    assert "08:00:00" in listed or "07:00:00" in listed  # UTC, of nine o'clock in Berlin
    cli(own_server, "app", "stop", "deployed")
    assert "stopped" in cli(own_server, "app", "ls")
    with by_name(own_server, "double") as double, pytest.raises(isobox.FunctionError, match="has no function double"):
        double.remote(1)


def test_versions_and_the_way_back(server: Server, tmp_path: Path) -> None:
    def deploy(factor: int) -> None:
        (tmp_path / f"versioned{factor}.py").write_text(
            "import isobox\napp = isobox.App('versioned')\n"
            "@app.function(max_containers=1, min_containers=1)\n"
            f"def times(x):\n    return x * {factor}\n"
        )
        cli(server, "deploy", str(tmp_path / f"versioned{factor}.py"))

    deploy(2)
    with by_name(server, "times", "versioned") as times, server.client() as http:
        assert times.remote(10) == 20
        old = http.get("/v1/apps/versioned").json()["functions"]["times"]["id"]
        until(lambda: http.get(f"/v1/functions/{old}").json()["containers"] == 1)
        deploy(3)
        assert times.remote(10) == 30
        assert "in force" in cli(server, "app", "history", "versioned").splitlines()[2]
        assert cli(server, "app", "rollback", "versioned") == "versioned version 3, as 1\n"
        assert times.remote(10) == 20
        gone = http.post("/v1/apps/versioned/rollback", json={"version": 9}).json()
        assert gone["code"] == "version_not_found"
        cli(server, "app", "stop", "versioned")
        other = http.post("/v1/apps/other/deploy", json={"functions": {"times": old}}).json()
        assert other["detail"] == "function times is another app's"
        assert http.get("/v1/apps/none").json()["code"] == "app_not_found"


def test_what_cannot_be_deployed(server: Server, tmp_path: Path) -> None:
    assert "there is no file absent.py" in cli(server, "deploy", "absent.py", fails=True)
    (tmp_path / "noapp.py").write_text("x = 1\n")
    assert "which app? noapp has none" in cli(server, "deploy", str(tmp_path / "noapp.py"), fails=True)
    app = isobox.App("odd")

    @app.function(schedule=isobox.Cron("61 * * * *"))
    def never() -> None: ...

    with pytest.raises(isobox.InvalidRequest, match="no cron expression"):
        app.deploy(url=server.url, api_key=server.key)
