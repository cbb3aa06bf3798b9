"""What programs inside may do, as README's "How safe it is" says it."""

import textwrap

import pytest
from server import Server

import isobox
from isobox import Sandbox

ASK = textwrap.dedent(
    """
    import ctypes, errno, os, socket
    libc = ctypes.CDLL(None, use_errno=True)
    KINDS = {"mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000,
             "pid": 0x20000000, "net": 0x40000000}
    def capabilities():
        return [line for line in open("/proc/self/status") if line.startswith("Cap")]
    had = capabilities()
    def raw_socket():
        try:
            return socket.socket(socket.AF_PACKET, socket.SOCK_RAW).fileno()
        except OSError:
            return -1
    def gained():
        mounts = libc.mount(b"none", b"/mnt", b"tmpfs", 0, None), libc.sethostname(b"other", 5), raw_socket()
        return "nothing" if had == capabilities() and mounts == (-1, -1, -1) else "rights"
    def ask(*name, call):
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            result = call()
            if result <= 0:  # in the new namespace, or refused
                os.write(write, (gained() if result == 0 else errno.errorcode[ctypes.get_errno()]).encode())
            else:
                os.waitpid(result, 0)
            os._exit(0)
        os.waitpid(pid, 0)
        print(*name, os.read(read, 100).decode())
    def clone(flags):
        return libc.syscall(56, flags | 17, 0, 0, 0, 0)
    def clone3(flags):
        arguments = (ctypes.c_uint64 * 8)(flags, 0, 0, 0, 17, 0, 0, 0)
        return libc.syscall(435, arguments, ctypes.sizeof(arguments))
    for kind, flag in KINDS.items():
        for way in (libc.unshare, clone, clone3):
            ask(way.__name__, kind, call=lambda: way(flag))
            ask(way.__name__, kind, "with user", call=lambda: way(flag | KINDS["user"]))
    for kind in os.listdir("/proc/self/ns"):
        ask("setns", kind, call=lambda: libc.setns(os.open(f"/proc/self/ns/{kind}", os.O_RDONLY), 0))
    """
)
"""Asks for each namespace in each way that there is, and prints the errno, or what came of it.

gVisor lets anybody clone into a new mount namespace, and its older releases ignore unshare(CLONE_NEWCGROUP): that gives
no right to do anything there.
"""

CAPABILITIES = (
    "import re; print(re.findall('Cap(?:Prm|Eff|Bnd).*?([0-9a-f]+)$', open('/proc/self/status').read(), re.M))"
)


def answers(sandbox: Sandbox, user: str) -> dict[str, str]:
    result = sandbox.exec("python3", "-c", ASK, user=user)
    assert result.outcome.exit_code == 0, result.stderr
    lines = [line.rpartition(" ") for line in result.stdout.splitlines()]
    return {asked: said for asked, _, said in lines}


@pytest.mark.parametrize("user", ["user", "root"])
def test_no_program_inside_gets_a_namespace(sandbox: Sandbox, user: str) -> None:
    said = answers(sandbox, user)
    assert len(said) >= 42
    assert all(said.values()), said
    assert "rights" not in said.values(), said
    assert {way for way, result in said.items() if result == "nothing"} <= {
        "clone mount",
        "clone3 mount",
        "unshare cgroup",
    }
    assert said["unshare user"] == said["clone user"] == said["clone3 user"] == "EUSERS"


def test_a_user_has_no_capability_and_a_setuid_program_gives_none(sandbox: Sandbox) -> None:
    assert sandbox.exec("python3", "-c", CAPABILITIES).stdout.strip() == str(["0" * 16] * 3)
    program = "cp /usr/bin/env /usr/local/bin/env-as-root && chmod 4755 /usr/local/bin/env-as-root"
    assert sandbox.exec(shell=program, user="root").outcome.exit_code == 0
    held = sandbox.exec("/usr/local/bin/env-as-root", "python3", "-c", CAPABILITIES).stdout.strip()
    assert held == str(["0" * 16] * 3)


TRACE = textwrap.dedent(
    """
    import ctypes, os, signal, struct
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    SYSCALL, GETREGS, SETREGS, GETPPID, UNSHARE = 24, 12, 13, 110, 272
    if (pid := os.fork()) == 0:
        libc.ptrace(0, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        result = libc.syscall(GETPPID)
        print("gave", result, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    registers, turned = (ctypes.c_ulonglong * 27)(), 0
    while libc.ptrace(SYSCALL, pid, None, None) == 0:
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            break
        libc.ptrace(GETREGS, pid, None, registers)
        if registers[15] == GETPPID and not turned:  # orig_rax; rdi and rax are 14 and 10 (sys/user.h)
            registers[15] = registers[10] = UNSHARE
            registers[14] = 0x10000000
            turned = libc.ptrace(SETREGS, pid, None, registers) == 0
    print("turned" if turned else "never turned")
    """
)
"""Turns another program's harmless call into unshare, behind any filter of system calls."""


def test_a_tracer_gets_round_no_refusal(sandbox: Sandbox) -> None:
    result = sandbox.exec("python3", "-c", TRACE)
    assert result.stdout.split() == ["gave", "-1", "turned"], (result.stdout, result.stderr)


def test_a_copy_refuses_namespaces_as_its_original_did(server: Server) -> None:
    with Sandbox.create(url=server.url, api_key=server.key) as sandbox:
        snapshot = sandbox.snapshot()
        (child,) = sandbox.fork(1)
        with child:
            assert answers(child, "user")["unshare user"] == "EUSERS"
        with Sandbox.create(snapshot=snapshot.id, url=server.url, api_key=server.key) as later:
            assert answers(later, "root")["clone user"] == "EUSERS"
        with pytest.raises(isobox.ApiError, match="keeps its `namespaces`"):
            Sandbox.create(snapshot=snapshot.id, namespaces=True, url=server.url, api_key=server.key)
        sandbox.pause()
        sandbox.resume()
        assert answers(sandbox, "user")["clone3 user"] == "EUSERS"


def test_who_asks_for_namespaces_gets_them_and_so_do_its_copies(server: Server) -> None:
    mounted = "unshare -Urm sh -c 'mount -t tmpfs none /mnt && grep /mnt /proc/mounts'"
    with Sandbox.create(namespaces=True, url=server.url, api_key=server.key) as sandbox:
        assert sandbox.info.raw["namespaces"] is True
        assert "tmpfs" in sandbox.exec(shell=mounted).stdout
        assert "rights" in answers(sandbox, "user").values(), "the questions find out what can be had"
        assert "CapEff:\t0000000000000000" in sandbox.exec("cat", "/proc/self/status").stdout
        (child,) = sandbox.fork(1)
        with child:
            assert child.info.raw["namespaces"] is True
            assert "tmpfs" in child.exec(shell=mounted).stdout
        sandbox.pause()
        sandbox.resume()
        assert "tmpfs" in sandbox.exec(shell=mounted).stdout
        files = sandbox.snapshot(kind="filesystem")
        with Sandbox.create(snapshot=files.id, namespaces=False, url=server.url, api_key=server.key) as plain:
            assert answers(plain, "user")["unshare user"] == "EUSERS"


def test_an_operator_can_forbid_namespaces(own_server: Server) -> None:
    own_server.start()
    with Sandbox.create(namespaces=True, url=own_server.url, api_key=own_server.key) as sandbox:
        snapshot = sandbox.snapshot()
    own_server.stop()
    own_server.environment["ISOBOX_ALLOW_NAMESPACES"] = "0"
    own_server.start()
    with own_server.client() as http:
        for body in ({"namespaces": True}, {"snapshot": snapshot.id}):
            answer = http.post("/v1/sandboxes", json=body)
            assert (answer.status_code, answer.json()["code"]) == (403, "namespaces_forbidden"), body
        made = http.post("/v1/sandboxes", json={})
        assert made.status_code == 201
        assert made.json()["namespaces"] is False
