"""What the base images hold, each built from the distribution's packages when first asked for."""

import base64
import datetime
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from nursery import Nursery
from server import Server

from fs.authorities import VARIABLES
from isobox import Image, Sandbox
from netpolicy.certificates import new_authority


@pytest.fixture(scope="module")
def node(server: Server) -> Iterator[Sandbox]:
    with Sandbox.create("node", url=server.url, api_key=server.key, timeout_s=600) as found:
        yield found


# The first use of an image on a machine builds it.
@pytest.mark.timeout(600)
def test_node_runs_and_its_errors_are_read(node: Sandbox) -> None:
    assert node.exec("node", "-p", "6 * 7").stdout == "42\n"
    assert int(node.exec("node", "-p", "process.versions.node.split('.')[0]").stdout) >= 24
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


@pytest.fixture(scope="module")
def python(server: Server) -> Iterator[Sandbox]:
    with Sandbox.create("python", url=server.url, api_key=server.key, timeout_s=600) as found:
        yield found


def output(sandbox: Sandbox, script: str, user: str | None = None) -> str:
    done = sandbox.exec(shell=script, user=user)
    assert done.exit_code == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_what_people_type_is_there(python: Sandbox) -> None:
    assert output(python, "python --version").startswith("Python 3.")
    assert output(python, "echo $LANG") == "C.UTF-8"
    assert output(python, "python -c 'import sys; print(sys.stdout.encoding)'") == "utf-8"
    assert output(python, "ls -d /usr/share/man/man1") == "/usr/share/man/man1"


def test_a_login_shell_keeps_the_path_that_it_was_given(python: Sandbox) -> None:
    path = output(python, "echo $PATH")
    assert path.startswith("/home/user/.local/bin:/usr/local/sbin:")
    assert output(python, "bash -lc 'echo $PATH'") == path
    assert python.exec("bash", "-lc", "echo $PATH", env={"PATH": "/opt/tool/bin:/usr/bin:/bin"}).stdout == (
        "/opt/tool/bin:/usr/bin:/bin\n"
    )
    assert "/home/user" not in output(python, "echo $PATH", user="root")


def test_pam_knows_the_default_user(python: Sandbox) -> None:
    assert output(python, "su user -c 'id -un'", user="root") == "user"
    assert output(python, "su - user -c 'id -un; pwd'", user="root") == "user\n/home/user"


def wheel() -> bytes:
    """A package `greeter` with a program of that name."""
    parts = {
        "greeter.py": "def main():\n    print('hello')\n",
        "greeter-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: greeter\nVersion: 1\n",
        "greeter-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "greeter-1.dist-info/entry_points.txt": "[console_scripts]\ngreeter = greeter:main\n",
    }
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        lines = []
        for name, text in parts.items():
            archive.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(text)}\n")
        archive.writestr("greeter-1.dist-info/RECORD", "".join(lines) + "greeter-1.dist-info/RECORD,,\n")
    return target.getvalue()


def test_pip_installs_for_the_user_and_a_python_that_runs_finds_it(python: Sandbox) -> None:
    python.files.write("/tmp/greeter-1-py3-none-any.whl", wheel())
    script = (
        "import subprocess, sys; "
        "subprocess.run(['pip', 'install', '-q', '--no-index', '/tmp/greeter-1-py3-none-any.whl'], check=True); "
        "import greeter; print(greeter.__file__)"
    )
    done = python.exec("python", "-c", script)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("/home/user/.local/lib/python3.")
    assert output(python, "greeter; command -v greeter") == "hello\n/home/user/.local/bin/greeter"


def test_npm_installs_programs_for_the_user(node: Sandbox) -> None:
    package = '{"name": "greeter", "version": "1.0.0", "bin": "greeter.js"}'
    node.files.write("/tmp/greeter/package.json", package)
    node.files.write("/tmp/greeter/greeter.js", "#!/usr/bin/env node\nconsole.log('hello')\n")
    output(node, "npm install --global --offline --no-audit --install-links /tmp/greeter")
    assert output(node, "greeter; command -v greeter") == "hello\n/home/user/.local/bin/greeter"


def test_its_own_name_leads_to_itself_in_every_copy(server: Server, python: Sandbox) -> None:
    def own_name(sandbox: Sandbox) -> list[str]:
        assert output(sandbox, "grep -c isobox /etc/hosts") == "1"
        script = "import socket; print(socket.gethostname(), socket.gethostbyname(socket.gethostname()))"
        return output(sandbox, f"python -c '{script}'").split()

    assert own_name(python) == [python.id, "127.0.0.1"]
    [child] = python.fork(1)
    with child:
        assert own_name(child) == [child.id, "127.0.0.1"]
        child.pause()
        child.resume()
        assert own_name(child) == [child.id, "127.0.0.1"]
    assert own_name(python) == [python.id, "127.0.0.1"]


def test_the_loopback_speaks_ipv6_and_nothing_else_does(python: Sandbox) -> None:
    script = """
import socket
with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
    with socket.create_connection(("localhost6", server.getsockname()[1])) as client:
        print(client.getpeername()[0])
with socket.socket(socket.AF_INET6) as outside:
    print(outside.connect_ex(("2001:db8::1", 80)) != 0)
"""
    [child] = python.fork(1)
    with child:
        for sandbox in (python, child):
            assert sandbox.exec("python", "-c", script).stdout.split() == ["::1", "True"]
    assert output(python, "getent ahosts localhost | cut -d' ' -f1 | sort -u") == "127.0.0.1"


def issue(authority: str, authority_key: str) -> tuple[str, str]:
    """(certificate, key) for localhost, in PEM."""
    issuer = x509.load_pem_x509_certificate(authority.encode())
    signer = serialization.load_pem_private_key(authority_key.encode(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_before_utc + datetime.timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True)
        .sign(signer, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    private = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


SERVE = """
openssl s_server -quiet -accept 8443 -www -cert /tmp/leaf.pem -key /tmp/leaf.key >/dev/null 2>&1 </dev/null &
for _ in $(seq 200); do curl -s -o /dev/null --insecure https://localhost:8443/ && break; sleep 0.05; done
"""


def test_one_setting_puts_an_authority_into_every_sandbox_and_build(tmp_path: Path, nursery: Nursery) -> None:
    authority, key = new_authority("a company's proxy")
    (tmp_path / "ca.pem").write_text(f"# ours\n{authority}")
    certificate, private = issue(authority, key)
    # The cache is every server's: `base` alone is prepared for this one, and anew for the next that asks for it.
    settings = {"ISOBOX_CA_BUNDLE": str(tmp_path / "ca.pem"), "ISOBOX_POOL_IMAGE": "base", "ISOBOX_POOL_FLOOR": "0"}
    behind_proxy = Server(tmp_path / "state", nursery, **settings)
    behind_proxy.start()
    try:
        with Sandbox.create("base", url=behind_proxy.url, api_key=behind_proxy.key) as sandbox:
            sandbox.files.write("/tmp/leaf.pem", certificate)
            sandbox.files.write("/tmp/leaf.key", private)
            sandbox.exec(shell=SERVE).check()
            assert "Cipher" in output(sandbox, "curl -sS --max-time 20 https://localhost:8443/")
            assert "Cipher" in output(sandbox, "env -i curl -sS --max-time 20 https://localhost:8443/")
            names = output(sandbox, "env | grep =/etc/ssl/certs/ca-certificates.crt | cut -d= -f1 | sort").split()
            assert names == sorted(VARIABLES)
            bundle = sandbox.files.read_text("/etc/ssl/certs/ca-certificates.crt")
            assert bundle.count("BEGIN CERTIFICATE") > 100
            # The distribution's own tool makes the bundle anew: the authority stays in it.
            output(sandbox, "update-ca-certificates", user="root")
            assert "Cipher" in output(sandbox, "curl -sS --max-time 20 https://localhost:8443/")
        image = Image.base("base").run('openssl x509 -in "$PIP_CERT" -noout && cp "$PIP_CERT" /srv/seen')
        with Sandbox.create(image, url=behind_proxy.url, api_key=behind_proxy.key) as sandbox:
            assert authority.strip() in sandbox.files.read_text("/srv/seen")
    finally:
        behind_proxy.end()
