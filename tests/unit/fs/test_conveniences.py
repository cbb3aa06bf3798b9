import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import Memory

from fs.conveniences import UID, add_conveniences, with_user_programs
from fs.tree import Node, Tree, folder
from fs.treefiles import TreeFiles


class Image:
    """A tree that tests fill and look into."""

    def __init__(self, *links: tuple[str, str], **contents: str) -> None:
        self.tree, self.sink = Tree(), Memory()
        for name in ("etc", "home", "home/user"):
            self.tree.put(name.encode(), folder())
        for name, text in contents.items():
            self.put(name.replace("__", "/").replace("DOT", "."), text)
        for name, target in links:
            self.tree.put(name.encode(), Node("symlink", 0o777, target=target.encode()))

    def put(self, path: str, text: str, **fields: int) -> None:
        node = Node("file", fields.pop("mode", 0o644), pieces=self.sink.add(io.BytesIO(text.encode())), **fields)
        self.tree.put(path.encode(), node)

    def add(self) -> "Image":
        add_conveniences(TreeFiles(self.tree, self.sink, self.sink.read))  # type: ignore[arg-type]
        return self

    def text(self, path: str) -> str:
        node = self.tree.find(path.encode())
        assert node is not None
        return self.sink.read(node).decode()

    def listing(self) -> list[tuple[bytes, str, int, int, int, bytes, bytes]]:
        return [
            (path, node.kind, node.mode, node.uid, node.gid, node.target, b"".join(p.digest for p in node.pieces))
            for path, node in self.tree.walk()
        ]


def debian() -> Image:
    return Image(
        ("usr/bin/python3", "python3.11"),
        usr__lib__python3DOT11__os="",
        usr__bin__npm="",
        var__lib__dpkg__status="",
        etc__shadow="root:*:1:::::\n",
        etc__profile="PATH=/usr/bin\n",
        etc__profileDOTd__other="",
        **{"usr__lib__python3DOT11__EXTERNALLY-MANAGED": "[externally-managed]"},
    )


def test_an_image_of_debians_gets_all_of_them_once() -> None:
    image = debian().add()
    python = image.tree.find(b"usr/bin/python")
    assert python is not None
    assert (python.kind, python.target) == ("symlink", b"python3")
    assert image.tree.find(b"usr/lib/python3.11/EXTERNALLY-MANAGED") is None
    assert image.tree.find(b"usr/share/man/man1") is not None
    assert image.text("home/user/.npmrc") == "prefix=/home/user/.local\n"
    assert image.text("etc/shadow").splitlines()[1].startswith("user:*:")
    for path in ("home/user/.local/bin", "home/user/.local/lib/python3.11/site-packages", "home/user/.npmrc"):
        node = image.tree.find(path.encode())
        assert node is not None
        assert node.uid == UID
    before = image.listing()
    assert image.add().listing() == before


def test_an_image_that_lacks_what_they_are_for_gets_none_of_it() -> None:
    image = Image(bin__sh="").add()
    names = {path.decode() for path, _ in image.tree.walk()}
    assert names == {"bin", "bin/sh", "etc", "home", "home/user", "home/user/.local", "home/user/.local/bin"}


@pytest.mark.parametrize("where", ["usr/local/bin", "usr/bin"])
def test_a_python_that_is_there_stays(where: str) -> None:
    image = Image(usr__bin__python3="")
    image.put(f"{where}/python", "own", mode=0o755)
    assert image.add().text(f"{where}/python") == "own"
    assert len([path for path, _ in image.tree.walk() if path.endswith(b"/python")]) == 1


def test_pip_and_ipython_are_found_by_their_short_names_too() -> None:
    image = Image(usr__local__bin__pip3="", usr__bin__ipython3="").add()
    for path, target in ((b"usr/local/bin/pip", b"pip3"), (b"usr/bin/ipython", b"ipython3")):
        node = image.tree.find(path)
        assert node is not None
        assert node.target == target


def test_what_the_image_has_is_kept() -> None:
    image = Image(usr__bin__npm="", etc__shadow="")
    image.put("home/user/.npmrc", "//registry/:_authToken=x\n")
    image.put("etc/shadow", "user:$6$hash:1:0:9:7:::\n", mode=0o600, gid=42)
    image.add()
    assert image.text("home/user/.npmrc") == "//registry/:_authToken=x\n"
    shadow = image.tree.find(b"etc/shadow")
    assert shadow is not None
    assert (shadow.mode, shadow.gid, image.sink.read(shadow)) == (0o600, 42, b"user:$6$hash:1:0:9:7:::\n")


def test_the_shadow_database_keeps_its_group() -> None:
    image = Image()
    image.put("etc/shadow", "root:*:1:::::\n", mode=0o640, gid=42)
    shadow = image.add().tree.find(b"etc/shadow")
    assert shadow is not None
    assert (shadow.mode, shadow.gid) == (0o640, 42)


@pytest.mark.parametrize(
    "path",
    ["home/user/.local", "home/user/.local/lib", "usr/share/man", "etc/profile", "etc/profile.d", "etc/shadow"],
)
@pytest.mark.parametrize("target", ["nowhere", "/home/user/.local", "..", "/etc"])
def test_no_link_in_the_way_refuses_an_image(path: str, target: str) -> None:
    image = debian()
    image.tree.remove(path.encode())
    image.tree.put(path.encode(), Node("symlink", 0o777, target=target.encode()))
    image.add()
    node = image.tree.find(path.encode())
    assert node is not None
    assert node.kind == "symlink" or path == "etc/shadow"


def test_a_login_shell_sets_back_the_path_before_other_parts_add_to_it() -> None:
    image = debian().add()
    first, second = image.text("etc/profile").splitlines()
    assert first.startswith("isobox_path=$PATH")
    assert second == "PATH=/usr/bin"
    parts = image.tree.find(b"etc/profile.d")
    assert parts is not None
    assert min(parts.children) == b"00-isobox.sh"


@given(st.lists(st.sampled_from(["/usr/bin", "/bin", "/home/user/.local/bin", ""])))
def test_the_users_programs_are_on_a_path_once_and_hide_nothing(parts: list[str]) -> None:
    path = ":".join(parts)
    found = with_user_programs(path).split(":")
    assert "/home/user/.local/bin" in found
    assert with_user_programs(":".join(found)) == ":".join(found)
    assert found[: len(path.split(":"))] == path.split(":")
