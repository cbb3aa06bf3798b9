import pytest
from openai import OpenAI
from server import Server

from agent_examples import (
    coding_agent,
    parallel_map,
    scheduled_report,
    scripted_model,
    snapshot_model,
    tree_search,
    two_images,
    web_counter,
)


@pytest.fixture(autouse=True)
def _environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBOX_URL", server.url)
    monkeypatch.setenv("ISOBOX_API_KEY", server.key)


def test_the_coding_agent_reads_the_error_and_mends_its_program() -> None:
    shown: list[str] = []
    with scripted_model.serving() as url, OpenAI(base_url=url, api_key="none-needed") as client:
        words = coding_agent.run(client, "scripted", scripted_model.TASK, show=shown.append)
    assert "north 6.0" in words
    assert "west no data" in words
    assert any("ZeroDivisionError in mean, line 4" in line for line in shown)


def test_a_tool_call_that_makes_no_sense_is_an_answer() -> None:
    tools = coding_agent.Tools(None)  # type: ignore[arg-type]  # none of these reaches a sandbox
    for name, arguments in (("nope", "{}"), ("write_file", "{}"), ("run_command", "[]"), ("read_output", "{")):
        assert "problem" in tools.call(name, arguments)


def test_the_tree_search_keeps_the_best_branch() -> None:
    shown: list[str] = []
    taken, size = tree_search.search(tree_search.offline, depth=2, show=shown.append)
    assert len(taken) >= 1
    assert size < 6000
    assert any("the table cannot be got back" in line for line in shown), "what loses data does not count"
    assert any("AttributeError" in line for line in shown)


def test_the_parallel_map_measures_every_file() -> None:
    shown: list[str] = []
    found = parallel_map.run(40, show=shown.append)
    assert len({each["name"] for each in found}) == 40
    assert all(each["lines"] > 0 for each in found if each["name"] != "__phello__.foo.py")
    assert "depth" in shown[0]


def test_the_model_is_loaded_once() -> None:
    found = snapshot_model.run(["The", "If", "A", "For"], show=lambda _: None)
    assert len({loaded_as for _, loaded_as, _ in found}) == 1
    assert [sentence.split()[0] for sentence, _, _ in found] == ["The", "If", "A", "For"]


def test_the_report_comes_by_itself() -> None:
    shown: list[str] = []
    assert len(scheduled_report.run(2, show=shown.append)) >= 2
    assert "the report comes next at 20" in shown[0]


def test_the_web_counter_counts() -> None:
    found = web_counter.run(["/", "/about", "/"], show=lambda _: None)
    assert [each["count"] for each in found] == [1, 1, 2]


def test_the_pipeline_goes_through_two_images() -> None:
    found = two_images.run(20, show=lambda _: None)
    assert len(found) == 8
    assert "isinstance" in [name for name, _, _ in found]
