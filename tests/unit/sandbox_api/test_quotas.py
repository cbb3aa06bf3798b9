"""What tenants may have on the server's disk."""

import asyncio
import base64
import hashlib
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolation.errors import DiskFull
from sandbox_api.models.objects import Keys, PutItems
from sandbox_api.problems import Problem
from sandbox_api.services.functions.values import Values
from sandbox_api.services.objects import ObjectService, Remembered
from sandbox_api.services.quota import ROW, Quota
from sandbox_api.services.uploads import Uploads
from sandbox_api.store.functions import CallRecord
from sandbox_api.store.store import Store

MIB = 1 << 20


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60), st.booleans()), max_size=50))
def test_no_tenant_has_more_than_the_limit_and_none_pays_for_another(steps: list[tuple[str, int, bool]]) -> None:
    quota, have = Quota(100, "things", setting="X"), {"a": 0, "b": 0}
    for tenant, size, gives in steps:
        if gives:
            size = min(size, have[tenant])
            quota.give(tenant, size)
            have[tenant] -= size
        elif have[tenant] + size > 100:
            with pytest.raises(Problem, match="things take"):
                quota.take(tenant, size)
        else:
            quota.take(tenant, size)
            have[tenant] += size
        assert (quota.used("a"), quota.used("b")) == (have["a"], have["b"])


# ---- results of functions


def call(tenant: str = "t", number: int = 0) -> CallRecord:
    return CallRecord(f"cal{number}", tenant, "fun", time.time())


def test_results_are_counted_over_restarts_and_given_back_when_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    values = Values(tmp_path / "values", store.functions, MIB)
    one, other = call(), call("u", 1)
    for each in (one, other):
        store.functions.save_call(each)
        values.take(each, MIB // 2)
    with pytest.raises(Problem, match="inputs and results of functions take"):
        values.take(one, MIB // 2)
    values.take(one, 1000)
    values.give(one, 1000)
    again = Values(tmp_path / "values", store.functions, MIB)
    with pytest.raises(Problem):
        again.take(call(number=2), MIB // 2)
    again.forget(one.id)
    again.take(call(number=2), MIB - ROW)
    with pytest.raises(Problem):
        again.take(other, MIB // 2)
    store.close()


def test_inputs_are_counted_until_they_are_over(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    values, one = Values(tmp_path / "values", store.functions, MIB), call()
    values.take_inputs(one, [1000, MIB // 2])
    with pytest.raises(Problem):
        values.take_inputs(one, [MIB // 2])
    values.give_input(one, MIB // 2)
    assert one.kept == 1000 + ROW
    values.take_inputs(one, [MIB // 2])
    for size in (MIB // 2, 1000, 5000):
        values.give_input(one, size)
    assert one.kept == 0
    values.take_inputs(one, [MIB - ROW])
    store.close()


def test_very_many_results_of_nothing_are_counted_too(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    values, one = Values(tmp_path / "values", store.functions, 100 * ROW), call()
    for _ in range(100):
        values.take(one, 0)
    with pytest.raises(Problem):
        values.take(one, 0)
    store.close()


def test_a_value_is_kept_as_it_came_and_holes_take_no_disk(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    values = Values(tmp_path / "values", store.functions, MIB)
    noise = random.Random(1).randbytes(300_000)
    contents = [noise, bytes(20 * MIB), noise[:10], bytes(5 * MIB)]

    async def run() -> tuple[str, bytes]:
        name = await values.write("cal", pieces(*contents), sum(map(len, contents)))
        return name, b"".join([piece async for piece in values.read("cal", name)])

    name, found = asyncio.run(run())
    assert found == b"".join(contents)
    assert (tmp_path / "values/cal" / name).stat().st_blocks * 512 < MIB
    values.drop("cal", name)
    store.close()


@pytest.mark.parametrize("size", [9, 11])
def test_a_value_of_another_size_leaves_nothing(tmp_path: Path, size: int) -> None:
    store = Store(tmp_path / "db")
    values = Values(tmp_path / "values", store.functions, MIB)
    with pytest.raises(Problem, match="has more" if size < 10 else "had 10"):
        asyncio.run(values.write("cal", pieces(b"01234", b"56789"), size))
    assert list((tmp_path / "values/cal").iterdir()) == []
    store.close()


def test_a_value_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError(28, "No space left on device")

    store = Store(tmp_path / "db")
    values = Values(tmp_path / "values", store.functions, MIB)
    with pytest.raises(DiskFull, match="No space left"):
        asyncio.run(values.write("cal", broken(), 5))
    assert list((tmp_path / "values/cal").iterdir()) == []
    store.close()


# ---- uploads


def put(uploads: Uploads, tenant: str, *parts: bytes, digest: str | None = None) -> str:
    name = digest or f"sha256:{hashlib.sha256(b''.join(parts)).hexdigest()}"
    asyncio.run(uploads.put(tenant, name, pieces(*parts)))
    return name


def test_uploads_of_a_tenant_are_bounded_and_those_that_fail_cost_nothing(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 2 * MIB)
    first = put(uploads, "t", bytes(MIB))
    for _ in range(3):
        with pytest.raises(Problem, match="uploads take"):
            put(uploads, "t", *[bytes(MIB // 2)] * 3)
        with pytest.raises(Problem, match="not what its digest says"):
            put(uploads, "t", b"x" * MIB, digest=first)
        put(uploads, "t", bytes(MIB))  # the same again
    put(uploads, "t", b"y" * MIB)
    put(uploads, "u", b"z" * 2 * MIB)
    assert len(list(tmp_path.glob("*/*"))) == 3
    again = Uploads(tmp_path, 2 * MIB)
    with pytest.raises(Problem):
        put(again, "t", b"small")
    for path in tmp_path.glob("*/*"):
        os.utime(path, (1, 1))
    again.expire()
    put(again, "t", b"small")


def test_very_many_small_uploads_count_as_more(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, MIB)
    for number in range(16):
        put(uploads, "t", b"%d" % number)
    with pytest.raises(Problem):
        put(uploads, "t", b"one more")


# ---- dicts and queues


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 8), st.integers(0, 4000)), max_size=60))
def test_answers_that_are_remembered_are_bounded_and_the_last_one_is_there(steps: list[tuple[str, int, int]]) -> None:
    remembered, there = Remembered(limit=8000), dict[tuple[str, str], int]()
    for id_, token, size in steps:
        gone = remembered.add(id_, str(token), size)
        there[id_, str(token)] = size + 512
        for each in gone:
            del there[each]
        assert (id_, str(token)) in there
        assert remembered.size == sum(there.values())
        assert remembered.size <= 8000


def objects(tmp_path: Path) -> tuple[Store, ObjectService]:
    store = Store(tmp_path / "db")
    return store, ObjectService(store.objects, store.functions)


def item(key: str, size: int) -> PutItems:
    encoded = base64.b64encode(key.encode()).decode(), base64.b64encode(bytes(size)).decode()
    return PutItems.model_validate({"items": [dict(zip(("key", "value"), encoded, strict=True))]})


def test_all_dicts_of_a_tenant_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox_api.services.objects._TENANT_BYTES_MAX", 3 * MIB)
    monkeypatch.setattr("sandbox_api.services.objects._LARGE", MIB // 2)
    store, service = objects(tmp_path)
    for number in range(5):
        service.create("t", "dict", f"d{number}", None)
    for number in range(3):
        service.put("t", f"d{number}", item("k", MIB - 10))
    with pytest.raises(Problem, match="all dicts and queues hold"):
        service.put("t", "d3", item("k", MIB - 10))
    service.put("t", "d3", item("k", 100))
    service.create("u", "dict", "d", None)
    service.put("u", "d", item("k", MIB - 10))
    store.close()


def test_answers_beyond_the_bound_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, service = objects(tmp_path)
    monkeypatch.setattr(service, "_answers", {"t": Remembered(limit=3 * MIB)})
    record = service.create("t", "dict", "d", None)
    for number in range(6):
        service.put("t", "d", item("k", MIB - 10))
        service.pop("t", "d", ask_for("k", f"token{number:011}"))
    there = [store.objects.answered(record.id, f"pop token{number:011}") is not None for number in range(6)]
    assert there == [False, False, False, False, True, True]
    store.close()


def ask_for(key: str, token: str) -> Keys:
    return Keys.model_validate({"keys": [base64.b64encode(key.encode()).decode()], "token": token})
