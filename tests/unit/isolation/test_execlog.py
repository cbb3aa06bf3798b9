import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolation.execlog import HEAD_KEPT, Event, EventType, Gap, LogReader, LogWriter, remove

writes = st.lists(
    st.tuples(st.sampled_from([EventType.STDOUT, EventType.STDERR]), st.binary(min_size=1, max_size=2000)), max_size=40
)


def everything(base: Path, after: int = 0, budget: int = 1 << 18) -> list[Event | Gap]:
    found: list[Event | Gap] = []
    with LogReader(base) as reader:
        while events := reader.read(after, budget=budget):
            found += events
            after = events[-1].seq
    return found


def output(events: list[Event | Gap], type_: EventType) -> bytes:
    return b"".join(event.payload for event in events if isinstance(event, Event) and event.type == type_)


@given(writes, st.integers(0, 40), st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_a_reader_from_any_point_gets_the_rest_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[EventType, bytes]], after: int, budget: int
) -> None:
    base = tmp_path_factory.mktemp("log") / "e"
    log = LogWriter(base)
    for type_, payload in items:
        log.append(type_, payload)
    after = min(after, len(items))
    events = everything(base, after, budget)
    seqs = [event.seq for event in events]
    assert seqs == sorted(set(seqs))
    for type_ in (EventType.STDOUT, EventType.STDERR):
        assert output(events, type_) == b"".join(payload for kind, payload in items[after:] if kind == type_)
    with LogReader(base) as reader:
        whole = b"".join(payload for kind, payload in items if kind == EventType.STDOUT)
        for start in (0, len(whole) // 2, len(whole)):
            assert reader.stream(1, start, budget) == (start, whole[start : start + budget])
    log.close()


@given(writes, st.integers(0, 5000), st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_a_crash_at_any_byte_leaves_whole_events(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[EventType, bytes]], extra: int, cut: int
) -> None:
    base = tmp_path_factory.mktemp("log") / "e"
    log = LogWriter(base)
    for type_, payload in items:
        log.append(type_, payload)
    log.close()
    data, index = base.with_name("e.data"), base.with_name("e.index")
    with data.open("ab") as file:  # written, but its record was not
        file.write(b"?" * extra)
    os.truncate(index, max(4096, index.stat().st_size - cut))
    again = LogWriter(base)
    kept = items[: again.last]
    assert again.stdout == sum(len(payload) for kind, payload in kept if kind == EventType.STDOUT)
    again.append(EventType.STDOUT, b"on")
    events = everything(base)
    assert output(events, EventType.STDOUT) == b"".join(p for k, p in kept if k == EventType.STDOUT) + b"on"
    again.close()


def test_the_oldest_goes_the_first_mebibyte_stays_and_a_gap_says_so(tmp_path: Path) -> None:
    base = tmp_path / "e"
    log = LogWriter(base, limit=4 << 20)
    written = b""
    for i in range(200):
        piece = bytes([i]) * 65536
        written += piece
        log.append(EventType.STDOUT, piece)
        log.reclaim()
    assert log.size <= 4 << 20
    blocks = sum(base.with_name(name).stat().st_blocks * 512 for name in ("e.data", "e.index"))
    assert blocks <= (4 << 20) + (256 << 10)
    events = everything(base)
    gaps = [event for event in events if isinstance(event, Gap)]
    assert len(gaps) == 1
    kept = output(events, EventType.STDOUT)
    assert kept[:HEAD_KEPT] == written[:HEAD_KEPT]
    assert len(kept) + gaps[0].stdout_bytes == len(written)
    assert written.endswith(kept[HEAD_KEPT:])
    with LogReader(base) as reader:
        begin, tail = reader.stream(1, HEAD_KEPT, 1 << 30)
        assert (begin, tail) == (HEAD_KEPT + gaps[0].stdout_bytes, kept[HEAD_KEPT:])
    log.close()
    again = LogWriter(base, limit=4 << 20)
    assert (again.last, again.stdout, again.size) == (200, len(written), log.size)
    again.close()
    remove(base)
    assert list(tmp_path.iterdir()) == []


def test_what_followers_have_not_had_is_kept_when_asked(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "e", limit=2 << 20)
    for _ in range(64):
        log.append(EventType.STDOUT, b"x" * 65536)
        log.reclaim(keep_from=1)
    assert log.full
    log.reclaim(keep_from=60)
    assert not log.full
    log.close()


def test_the_end_is_found(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "e")
    log.append(EventType.STDOUT, b"x")
    with LogReader(tmp_path / "e") as reader:
        assert reader.ending() is None
        log.append(EventType.EXIT, b"{}")
        assert reader.ending() == b"{}"
    log.close()


@pytest.mark.parametrize("start", [0, 5, 8191])
def test_what_was_printed_byte_by_byte_is_read_in_few_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    log = LogWriter(tmp_path / "e")
    for n in range(8192):
        log.append(EventType.STDOUT, bytes([n % 251]))
    log.close()
    reads = [0]
    pread = os.pread

    def counting(*arguments: int) -> bytes:
        reads[0] += 1
        return pread(*arguments)

    monkeypatch.setattr("isolation.execlog.os.pread", counting)
    with LogReader(tmp_path / "e") as reader:
        assert reader.stream(1, start, 4096) == (start, bytes(n % 251 for n in range(8192))[start : start + 4096])
    assert reads[0] < 80


def test_events_of_a_type_are_found_by_the_index(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "e", limit=2 * HEAD_KEPT)
    results = []
    for n in range(300):
        log.append(EventType.STDOUT, b"x" * 16384)
        if n % 100 == 0:
            results.append(log.append(EventType.RESULT, b"{}"))
        log.reclaim()
    log.close()
    with LogReader(tmp_path / "e") as reader:
        there = [seq for seq in results if reader.read(seq - 1, budget=1)[0].seq == seq]
        assert reader.seqs(EventType.RESULT) == there
