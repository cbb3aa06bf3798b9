import pytest
from openai import OpenAI
from server import Server

from agent_examples import coding_agent, parallel_map, scripted_model, tree_search


def test_the_coding_agent_reads_the_error_and_mends_its_program(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOBOX_URL", server.url)
    monkeypatch.setenv("ISOBOX_API_KEY", server.key)
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


def test_the_tree_search_keeps_the_best_branch(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBOX_URL", server.url)
    monkeypatch.setenv("ISOBOX_API_KEY", server.key)
    shown: list[str] = []
    taken, size = tree_search.search(tree_search.offline, depth=2, show=shown.append)
    assert len(taken) >= 1
    assert size < 6000
    assert any("the table cannot be got back" in line for line in shown), "what loses data does not count"
    assert any("AttributeError" in line for line in shown)


def test_the_parallel_map_measures_every_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBOX_URL", server.url)
    monkeypatch.setenv("ISOBOX_API_KEY", server.key)
    shown: list[str] = []
    found = parallel_map.run(40, show=shown.append)
    assert len({each["name"] for each in found}) == 40
    assert all(each["lines"] > 0 for each in found if each["name"] != "__phello__.foo.py")
    assert "depth" in shown[0]
