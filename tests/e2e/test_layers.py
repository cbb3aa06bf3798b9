"""Snapshots of files alone: what differs from the image, and nothing else."""

import hashlib
import io
import tarfile

import httpx
import pytest
from server import Server

from isobox import Sandbox

CHANGE = r"""
set -e
cd /root
mkdir -p deep/er "deep/$(printf 'n%.0s' $(seq 120))"
echo new > deep/er/file
ln deep/er/file "deep/$(printf 'n%.0s' $(seq 120))/same"  # which, in the sentry of 2024, makes it root's
chown 7:3000000 deep/er/file; chmod 4711 deep/er/file
ln -s "/$(printf 't%.0s' $(seq 130))" deep/link
mkfifo deep/fifo
head -c 700000 /dev/urandom > deep/random; sha256sum < deep/random > deep/sum
touch -d 2001-02-03 deep/er
rm /etc/issue                       # of the image
rm -r /etc/skel; mkdir /etc/skel; echo mine > /etc/skel/readme
rm /etc/hosts; mkdir /etc/hosts; echo in > /etc/hosts/folder
echo "# more" >> /etc/profile
chmod 700 /opt
echo gone > /tmp/not-kept
"""
CHECK = r"""
set -e
cd /root
stat -c '%a %u %g %h %n' deep/er/file deep/link deep/fifo
cat "deep/$(printf 'n%.0s' $(seq 120))/same"
readlink deep/link | wc -c
sha256sum < deep/random | cmp - deep/sum
stat -c %y deep/er | cut -c1-10
ls /etc/issue 2>&1 | grep -c 'No such'
ls /etc/skel
cat /etc/hosts/folder
tail -1 /etc/profile
stat -c %a /opt
ls /tmp | wc -l
"""
EXPECTED = """4711 7 3000000 2 deep/er/file
777 0 0 1 deep/link
644 0 0 1 deep/fifo
new
132
2001-02-03
1
readme
in
# more
700
0
"""


def shell(sandbox: Sandbox, script: str) -> str:
    done = sandbox.exec("sh", "-c", script, user="root")
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def changed(server: Server) -> str:
    """The id of a snapshot of CHANGE."""
    with Sandbox.create(url=server.url, api_key=server.key, env={"MINE": "yes"}) as sandbox:
        shell(sandbox, CHANGE)
        snapshot = sandbox.snapshot("files", kind="filesystem")
        assert shell(sandbox, "echo it goes on") == "it goes on\n"
        assert snapshot.kind == "filesystem"
        assert 700_000 < snapshot.size_bytes < 2_000_000
        return snapshot.id


def test_every_kind_of_change_comes_back(server: Server, changed: str) -> None:
    for _ in range(2):  # from the pool, and without
        with Sandbox.create(snapshot=changed, url=server.url, api_key=server.key) as sandbox:
            assert shell(sandbox, CHECK) == EXPECTED
            assert shell(sandbox, "echo $MINE; hostname") == f"yes\n{sandbox.id}\n"
            assert sandbox.exec("sh", "-c", "id -un; touch ~/works").stdout == "user\n"


def test_a_layer_of_a_layer_holds_both(server: Server, changed: str) -> None:
    with Sandbox.create(snapshot=changed, url=server.url, api_key=server.key) as sandbox:
        shell(sandbox, "rm /root/deep/random /root/deep/sum; echo second > /root/second")
        again = sandbox.snapshot(kind="filesystem")
    with Sandbox.create(snapshot=again.id, url=server.url, api_key=server.key) as sandbox:
        found = shell(sandbox, "cat /root/second /root/deep/er/file; ls /root/deep | wc -l; ls /etc/issue 2>&1 | wc -l")
        assert found == "second\nnew\n4\n1\n"


def test_it_is_an_image_layer_that_tar_reads(server: Server, changed: str) -> None:
    path = server.state / "snapshots" / changed / "layer.tar"
    with tarfile.open(path) as layer:
        names = layer.getnames()
        assert {"etc/.wh.issue", "root/deep/er/file", "etc/skel/readme", "etc/hosts"} <= set(names)
        assert any(name.startswith("etc/skel/.wh.") for name in names)
        assert not any(name.startswith((".isobox", "proc", "dev", "tmp/")) for name in names)
        content = layer.extractfile("root/deep/sum")
        assert content is not None
        data = layer.extractfile("root/deep/random")
        assert data is not None
        assert content.read().decode().split()[0] == hashlib.sha256(data.read()).hexdigest()


def test_a_sandboxs_own_name_is_no_change_of_its_files(server: Server) -> None:
    with Sandbox.create(url=server.url, api_key=server.key) as sandbox:
        shell(sandbox, "echo new > /srv/file")
        layers = [sandbox.snapshot(kind="filesystem")]
        shell(sandbox, "echo 192.0.2.1 elsewhere >> /etc/hosts")
        layers.append(sandbox.snapshot(kind="filesystem"))
    names = []
    for layer in layers:
        with tarfile.open(server.state / "snapshots" / layer.id / "layer.tar") as archive:
            names.append(set(archive.getnames()))
    assert names == [{"srv/file", "srv"}, {"srv/file", "srv", "etc/hosts", "etc"}]
    with Sandbox.create(snapshot=layers[1].id, url=server.url, api_key=server.key) as sandbox:
        assert shell(sandbox, "getent hosts $(hostname)").split() == ["127.0.0.1", sandbox.id]
        assert shell(sandbox, "getent hosts elsewhere").split() == ["192.0.2.1", "elsewhere"]
        assert shell(sandbox, "grep -c isobox /etc/hosts") == "1\n"


def test_what_does_not_fit_is_refused_with_a_hint(server: Server, http: httpx.Client, changed: str) -> None:
    with Sandbox.create(url=server.url, api_key=server.key) as sandbox:
        shell(sandbox, "truncate -s 100G /root/sparse")
        refused = http.post(f"/v1/sandboxes/{sandbox.id}/snapshots", json={"kind": "filesystem"})
        assert (refused.status_code, refused.json()["code"]) == (409, "checkpoint_refused")
        assert "sparse" in refused.json()["hint"]
        assert shell(sandbox, "rm /root/sparse; echo goes on") == "goes on\n"
        assert sandbox.snapshot(kind="filesystem").size_bytes < 100_000
    template = http.post(f"/v1/sandboxes/{sandbox.id}/snapshots", json={"kind": "filesystem", "template": True})
    assert template.status_code in (409, 422)
    with Sandbox.create(url=server.url, api_key=server.key, resources={"disk_mb": 600}) as large:
        shell(large, "head -c 450M /dev/zero > /root/zeros")
        snapshot = large.snapshot(kind="filesystem")
    small = http.post("/v1/sandboxes", json={"snapshot": snapshot.id, "resources": {"disk_mb": 300}})
    assert small.status_code == 422


def test_a_file_of_the_snapshot_that_was_touched_is_refused(server: Server, http: httpx.Client) -> None:
    with Sandbox.create(url=server.url, api_key=server.key) as sandbox:
        sandbox.files.write("/home/user/a", io.BytesIO(b"x" * 10_000))
        snapshot = sandbox.snapshot(kind="filesystem")
    path = server.state / "snapshots" / snapshot.id / "layer.tar"
    raw = bytearray(path.read_bytes())
    raw[600] ^= 1
    path.write_bytes(raw)
    refused = http.post("/v1/sandboxes", json={"snapshot": snapshot.id})
    assert (refused.status_code, refused.json()["code"]) == (409, "snapshot_unusable")
