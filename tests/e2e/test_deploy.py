"""Apps that stay: versions, roll-back, schedules, functions by name."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
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
    said = cli(own_server, "deploy", "deployed_app.py").splitlines()
    assert said == [
        "deployed version 1: double, type_of, tick, report, page, Counter",
        f"  {own_server.url}/v1/apps/deployed/web/page/",
    ]
    answer = httpx.get(f"{said[1].strip()}passwd", headers={"Authorization": f"Bearer {own_server.key}"})
    assert answer.text.startswith("root:")
    until(lambda: "page | 127.0.0.1 - - " in cli(own_server, "app", "logs", "deployed"))
    with by_name(own_server, "double") as double, by_name(own_server, "Counter.plus") as plus:
        assert double.remote(4) == 8
        assert plus.remote(2) == 7
        assert list(double.map(range(3))) == [0, 2, 4]
    with by_name(own_server, "type_of") as safe:  # whoever deployed it said trust="pickle", and nobody here did
        with pytest.raises(isobox.RemoteError, match='it is pickled, and whoever called did not say trust="pickle"'):
            safe.remote(4)
        with pytest.raises(isobox.RemoteError, match="it is pickled"):
            safe.spawn(4).get()
    where = {"url": own_server.url, "api_key": own_server.key}
    with isobox.Function.from_name("deployed", "type_of", trust="pickle", **where) as trusting:
        assert trusting.remote(4) is int
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


def test_an_app_is_served_as_it_is_saved(server: Server, tmp_path: Path) -> None:
    def save(factor: str) -> None:
        (tmp_path / "saved.py").write_text(
            f"import isobox\napp = isobox.App('saved')\n@app.function(max_containers=1)\ndef times(x):\n    return x * {factor}\n"
        )

    save("2")
    environment = os.environ | {"ISOBOX_URL": server.url, "ISOBOX_API_KEY": server.key}
    command = [sys.executable, "-m", "isobox.cli.main", "app", "serve", str(tmp_path / "saved.py")]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as serving:
        try:
            until(lambda: "saved-dev version 1: times" in log.read_text())
            with by_name(server, "times", "saved-dev") as times:
                assert times.remote(10) == 20
                save("(")
                until(lambda: "SyntaxError" in log.read_text())
                save("3")
                until(lambda: "saved-dev version 2: times" in log.read_text())
                assert times.remote(10) == 30
        finally:
            serving.terminate()
            serving.wait(20)
    assert "Traceback" not in log.read_text().replace("SyntaxError", "", 1).partition("version 2")[2]
    assert re.search(r"saved-dev +stopped", cli(server, "app", "ls"))


def test_a_shell_like_a_container(server: Server, tmp_path: Path) -> None:
    (tmp_path / "shelled.py").write_text(
        "import isobox\napp = isobox.App('shelled')\n@app.function(env={'MINE': 'yes'})\ndef f():\n    return 1\n"
    )
    where = str(tmp_path / "shelled.py")
    assert cli(server, "shell", f"{where}::f", "-c", "ls shelled.py; echo $MINE") == "shelled.py\nyes\n"
    assert "has no function g; it has f" in cli(server, "shell", f"{where}::g", fails=True)
    cli(server, "deploy", where)
    assert cli(server, "shell", "shelled::f", "-c", "cat shelled.py | head -1") == "import isobox\n"
    assert "has no function h" in cli(server, "shell", "shelled::h", fails=True)
    cli(server, "app", "stop", "shelled")


def test_what_cannot_be_deployed(server: Server, tmp_path: Path) -> None:
    assert "there is no file absent.py" in cli(server, "deploy", "absent.py", fails=True)
    (tmp_path / "noapp.py").write_text("x = 1\n")
    assert "which app? noapp has none" in cli(server, "deploy", str(tmp_path / "noapp.py"), fails=True)
    app = isobox.App("odd")

    @app.function(schedule=isobox.Cron("61 * * * *"))
    def never() -> None: ...

    with pytest.raises(isobox.InvalidRequest, match="no cron expression"):
        app.deploy(url=server.url, api_key=server.key)
