"""Copies of a sandbox do not draw the numbers that their original draws, and what does is said in docs/api.md."""

import ast
import json
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from server import Server

from isobox import Sandbox


def where(server: Server) -> dict[str, str]:
    return {"url": server.url, "api_key": server.key}


@contextmanager
def children(sandbox: Sandbox, count: int) -> Iterator[list[Sandbox]]:
    with ExitStack() as ending:
        yield [ending.enter_context(child) for child in sandbox.fork(count)]


def apart(drawn: list[dict[str, Any]]) -> set[str]:
    """What is different in each of them."""
    return {name for name in drawn[0] if len({json.dumps(each[name]) for each in drawn}) == len(drawn)}


PREPARE = """
import json, random, ssl, uuid
import numpy as np
ssl.RAND_bytes(8), random.seed(1), np.random.seed(1), uuid.uuid4()
taken, own = np.random.default_rng(), np.random.default_rng(7)
taken.random(), own.random()
def draw():
    return json.dumps({"ssl": ssl.RAND_bytes(16).hex(), "random": random.random(), "uuid4": str(uuid.uuid4()),
                       "old numpy": np.random.random(), "new numpy": taken.random(), "own seed": own.random()})
"""


@pytest.mark.timeout(600)
def test_a_python_context_draws_numbers_of_its_own_in_each_copy(server: Server) -> None:
    def draw(sandbox: Sandbox) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(sandbox.run("print(draw())").stdout)
        return found

    with Sandbox.create("data", **where(server)) as sandbox:
        sandbox.run(PREPARE, timeout_s=60).check()
        snapshot = sandbox.snapshot()
        with children(sandbox, 3) as copies, Sandbox.create(snapshot=snapshot.id, **where(server)) as later:
            drawn = [draw(each) for each in (sandbox, *copies, later)]
    assert apart(drawn) == set(drawn[0]) - {"own seed"}
    assert len({each["own seed"] for each in drawn}) == 1, "what a program seeded itself is as it was"


OTHER_OPENSSL = """
import ctypes, shutil, ssl
with open("/proc/self/maps") as maps:
    shared = next(line.split()[5] for line in maps if "/libcrypto" in line)
shutil.copy(shared, "/tmp/libcrypto-of-a-wheel.so")
libraries = [ctypes.CDLL(path) for path in (shared, "/tmp/libcrypto-of-a-wheel.so")]
def draw():
    found = [ctypes.create_string_buffer(16) for _ in libraries]
    assert [library.RAND_bytes(*each, 16) for library, *each in zip(libraries, found)] == [1, 1]
    return [each.raw.hex() for each in found]
draw()
"""


def test_every_openssl_that_a_context_has_loaded_is_seeded_anew(server: Server) -> None:
    with Sandbox.create(**where(server)) as sandbox:
        sandbox.run(OTHER_OPENSSL).check()
        with children(sandbox, 3) as copies:
            drawn = [
                ast.literal_eval(each.run("draw()").check().results[0]["text/plain"]) for each in (sandbox, *copies)
            ]
    assert len({value for values in drawn for value in values}) == 8


def test_a_node_context_draws_numbers_of_its_own_in_each_copy(server: Server) -> None:
    prepare = """
        const crypto = require("crypto");
        crypto.randomBytes(8), crypto.randomUUID(), Math.random();
        const draw = () => ({bytes: crypto.randomBytes(16).toString("hex"), uuid: crypto.randomUUID(), math: Math.random(),
          web: Buffer.from(crypto.webcrypto.getRandomValues(new Uint8Array(16))).toString("hex")});
    """
    with Sandbox.create("node", **where(server)) as sandbox:
        sandbox.run(prepare, language="node").check()
        with children(sandbox, 3) as copies:
            drawn = [
                json.loads(each.run("console.log(JSON.stringify(draw()))", language="node").stdout)
                for each in (sandbox, *copies)
            ]
            assert apart(drawn) == {"bytes", "uuid", "math", "web"}
            numbers = [copies[0].run("Math.random()", language="node").results[0]["text/plain"] for _ in range(2)]
            assert 0 <= float(numbers[0]) < 1
            assert numbers[0] != numbers[1]


SERVICE = textwrap.dedent(
    """
    import os, ssl, sys
    ssl.RAND_bytes(16)
    began = open("/.isobox/generation").read()
    print("began", flush=True)
    for line in sys.stdin:
        if line == "heeds\\n" and began != (now := open("/.isobox/generation").read()):
            ssl.RAND_add(os.urandom(48), 48.0)
            began = now
        print(ssl.RAND_bytes(16).hex(), flush=True)
    """
)
"""A program of the tenant's own, which the service knows nothing of."""


@pytest.mark.parametrize("heeds", [True, False])
def test_a_program_of_ones_own_is_told_and_has_to_heed_it(server: Server, heeds: bool) -> None:
    with Sandbox.create(**where(server)) as sandbox:
        process = sandbox.start("python3", "-c", SERVICE, stdin=True)
        following = iter(process)
        while next(following).data != b"began\n":
            continue
        with children(sandbox, 2) as copies:
            drawn = set()
            for copy in copies:
                (running,) = (each for each in copy.execs() if each.raw["forked_from"] == process.id)
                copy.exec("true").check()  # starts when the copy has its name, and so its generation
                own = copy.process(running.id)
                own.write("heeds\n" if heeds else "anything\n")
                own.close_stdin()
                drawn.add(own.wait().stdout)
            assert len(drawn) == (2 if heeds else 1)


WATCHER = textwrap.dedent(
    """
    import ctypes, os
    libc = ctypes.CDLL(None)
    watch = libc.inotify_init()
    assert libc.inotify_add_watch(watch, b"/.isobox/generation", 0x2) >= 0  # IN_MODIFY
    print("watching", flush=True)
    os.read(watch, 4096)
    print(open("/.isobox/generation").read().strip(), flush=True)
    """
)


def test_the_generation_names_the_sandbox_and_changes_in_a_copy(server: Server) -> None:
    with Sandbox.create(**where(server)) as sandbox:
        told = "stat -c '%U %a' /.isobox/generation; cat /.isobox/generation; hostname"
        assert sandbox.exec(shell=told).stdout.split() == ["root", "644", sandbox.id, sandbox.id]
        assert sandbox.exec(shell="echo x > /.isobox/generation").exit_code != 0
        process = sandbox.start("python3", "-c", WATCHER)
        following = iter(process)
        while next(following).data != b"watching\n":
            continue
        with children(sandbox, 2) as copies:
            for copy in copies:
                (running,) = (each for each in copy.execs() if each.raw["forked_from"] == process.id)
                assert copy.process(running.id).wait().stdout.strip() == copy.id
        sandbox.pause()
        sandbox.resume()
        assert sandbox.exec(shell="cat /.isobox/generation").stdout.strip() == sandbox.id
