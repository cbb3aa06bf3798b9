import asyncio
import sqlite3
from pathlib import Path

import pytest
import structlog

from sandbox_api.models.images import Image
from sandbox_api.readable import readable
from sandbox_api.services.images import describe
from sandbox_api.store.records import ImageRecord
from sandbox_api.store.store import Store


def test_one_that_cannot_be_read_is_left_out_and_told() -> None:
    with structlog.testing.capture_logs() as logs:
        assert [*readable(["1", "x", "3"], int)] == [1, 3]
    assert [(line["log_level"], line["record"]) for line in logs] == [("error", "x")]


def test_an_error_that_is_no_unreadable_record_is_not_hidden() -> None:
    def fails(_: str) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError):
        [*readable(["1"], fails)]


def image(name: str, **fields: object) -> ImageRecord:
    return ImageRecord(f"img{name}", "tenant", name, "ready", 1.0, {"registry": {"reference": "h/x"}}, **fields)  # type: ignore[arg-type]


def test_a_bad_row_does_not_spoil_the_list(tmp_path: Path) -> None:
    store = Store(tmp_path / "isobox.db")
    deep: object = 0
    for _ in range(300):
        deep = [deep]
    bad = image(
        "bad",
        config={"env": {"A": "\ud800"}, "command": deep, "user": float("inf")},
        failure={"code": "c", "detail": "\ud800", "hint": ""},
    )

    async def stored() -> list[ImageRecord]:
        for record in (image("good"), bad, image("odd")):
            await store.save_image(record)
        with sqlite3.connect(tmp_path / "isobox.db") as other:
            other.execute("update images set doc = '{\"surprise\": 1}' where name = 'odd'")
        return await store.images("tenant", before=None, limit=10)

    with structlog.testing.capture_logs() as logs:
        records = asyncio.run(stored())
    store.close()
    assert {record.name for record in records} == {"good", "bad"}
    assert len(logs) == 1
    for record in records:
        shown = describe(record)
        assert isinstance(shown, Image)
        shown.model_dump_json().encode()
