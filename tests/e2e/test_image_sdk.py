"""Images as code: `isobox.Image`, Dockerfiles, the command line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import Server

import isobox
from isobox import Image, ImageFailed, Sandbox

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("sdk") / "state", ISOBOX_POOL_FLOOR="0").start()
    yield running
    running.end()


@pytest.fixture
def cli(own: Server) -> Iterator[object]:
    def run(*argv: str, code: int = 0, text: str | None = None) -> str:
        environment = os.environ | {"ISOBOX_URL": own.url, "ISOBOX_API_KEY": own.key, "NO_COLOR": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "isobox.cli.main", *argv],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_an_image_as_code(own: Server, tmp_path: Path) -> None:
    (tmp_path / "src/pkg").mkdir(parents=True)
    (tmp_path / "src/pkg/__init__.py").write_text("ANSWER = 42\n")
    (tmp_path / "one.txt").write_text("one\n")
    image = (
        Image.base("python")
        .env(PYTHONPATH="/srv")
        .workdir("/app")
        .copy_local(tmp_path / "src", "/srv")
        .copy_local(tmp_path / "one.txt", "/app/renamed.txt")
        .run("python3 -c 'import pkg; print(pkg.ANSWER)' > answer", "test -s answer")
    )
    told: list[str] = []
    info = image.build(on_log=told.append, url=own.url, api_key=own.key)
    assert "copy sha256" in "".join(told)
    with Sandbox.create(image, url=own.url, api_key=own.key) as sandbox:
        assert sandbox.exec("sh", "-c", "cat answer renamed.txt; pwd").stdout == "42\none\n/app\n"
        assert sandbox.info.image == info.id
    (tmp_path / "src/pkg/__init__.py").write_text("ANSWER = 43\n")
    again = Image.base("python").copy_local(tmp_path / "src", "/srv").build(url=own.url, api_key=own.key)
    assert again.id != info.id


def test_an_image_that_fails_says_why(own: Server) -> None:
    with pytest.raises(ImageFailed) as failed:
        Image.base("base").run("true", "nonsense-command").build(url=own.url, api_key=own.key)
    assert failed.value.image.failure is not None
    assert failed.value.image.failure["step"] == 2
    assert "step 2 failed" in str(failed.value)
    with pytest.raises(isobox.NotFound, match="no image"):
        Image.base("no-such-base").run("true").build(url=own.url, api_key=own.key)
    with pytest.raises(FileNotFoundError):
        Image.base().copy_local("/no/such/file", "/x")


def test_a_dockerfile_by_the_command_line(own: Server, cli: object, tmp_path: Path) -> None:
    assert callable(cli)
    (tmp_path / "app.py").write_text("print('from the image')\n")
    (tmp_path / "Dockerfile").write_text(
        'FROM python\nENV GREETING=hi\nWORKDIR /app\nCOPY app.py .\nRUN python3 app.py > out; rm /etc/issue\nCMD ["python3", "app.py"]\n'
    )
    said = cli("image", "build", "-f", str(tmp_path / "Dockerfile"), "dockered")
    assert "step 4 of 4: run python3 app.py" in said
    assert "dockered  " in said
    listing = cli("image", "ls")
    assert "dockered" in listing
    assert "python" in listing
    with Sandbox.create("dockered", url=own.url, api_key=own.key) as sandbox:
        assert sandbox.exec("sh", "-c", "cat out; echo $GREETING").stdout == "from the image\nhi\n"
    changes = cli("image", "diff", "python", "dockered").splitlines()
    assert "+ /app/app.py" in changes
    assert "- /etc/issue" in changes
    assert not any("usr/lib" in line for line in changes)
    assert '"state": "ready"' in cli("image", "inspect", "dockered")
    assert "step 1 of 4" in cli("image", "logs", "dockered")
    (tmp_path / "Dockerfile").write_text("FROM python\nONBUILD RUN x\n")
    assert "line 2: ONBUILD is not supported" in cli(
        "image", "build", "-f", str(tmp_path / "Dockerfile"), "x", code=2
    ).replace("\n", " ").replace("│", "").replace("  ", " ")
    cli("image", "rm", "dockered")
    assert "no such image" in cli("image", "rm", "dockered", code=1)
    assert "private address" in cli("image", "pull", "127.0.0.1:5000/x:1", "x", code=1)
    cli("image", "prune")


def test_trees_and_edits_by_the_client(own: Server, tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/a").write_text("hello world\n")
    with Sandbox.create("base", url=own.url, api_key=own.key) as sandbox:
        sandbox.files.upload_tree(tmp_path / "in", "/home/user/in")
        sandbox.files.edit("/home/user/in/deep/a", ("world", "there"))
        sandbox.files.copy("/home/user/in", "/home/user/copy")
        sandbox.files.move("/home/user/copy/deep/a", "/home/user/copy/b")
        sandbox.files.chmod("/home/user/copy/b", 0o600)
        sandbox.files.download_tree("/home/user/copy", tmp_path / "out")
        assert (tmp_path / "out/b").read_text() == "hello there\n"
        page = sandbox.files.page("/home/user/copy", limit=1)
        assert [each.name for each in page.entries] == ["b"]
        assert page.cursor is not None
        with pytest.raises(isobox.ConflictError, match="stands there 0 times"):
            sandbox.files.edit("/home/user/copy/b", ("nothing", "x"))
        changes = sandbox.files.watch("/home/user/copy")
        assert next(changes).type == "ready"
        sandbox.files.write("/home/user/copy/new", "x")
        assert next(changes).path.startswith("/home/user/copy/new")
        changes.close()
