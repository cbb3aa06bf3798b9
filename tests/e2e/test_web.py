"""Web endpoints of functions, through the server."""

import subprocess
import threading
from collections.abc import Iterator

import httpx
import pytest
import web_app as wa
from server import Server, until
from websockets.sync.client import connect

import isobox

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def running(server: Server) -> Iterator[None]:
    with wa.app.run(url=server.url, api_key=server.key):
        yield


@pytest.fixture
def web(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(headers={"Authorization": f"Bearer {server.key}"}, timeout=90) as client:
        yield client


def test_a_program_that_listens(running: None, web: httpx.Client, http: httpx.Client) -> None:
    url = wa.plain.web_url
    found = web.get(f"{url}/passwd")
    assert (found.status_code, found.text[:5]) == (200, "root:")
    assert web.get(f"{url}/no/such").status_code == 404
    assert httpx.get(f"{url}/passwd").status_code == 401
    assert http.get(f"/v1/functions/{wa.plain.id}").json()["containers"] == 1
    with pytest.raises(isobox.InvalidRequest, match="takes no calls"):
        wa.plain.remote()


def test_what_does_not_start_says_why(running: None, web: httpx.Client) -> None:
    found = web.get(wa.silent.web_url)
    assert (found.status_code, found.json()["code"]) == (502, "container_failed")
    assert "nothing listens on port 9000 after 0.3 s" in found.json()["detail"]
    found = web.get(wa.silent.web_url.rpartition("/fun")[0] + "/fun" + "a" * 26 + "/web")
    assert found.json()["code"] == "function_not_found"


def test_fastapi_endpoints(running: None, web: httpx.Client) -> None:
    found = web.post(wa.add.web_url, params={"a": 2, "b": 3})
    assert found.json() == {"sum": 5}
    assert web.post(wa.add.web_url, params={"a": "x"}).status_code == 422
    assert web.get(wa.add.web_url).status_code == 405


def test_an_application_with_state_and_websockets(running: None, web: httpx.Client, server: Server) -> None:
    url = wa.Pages().web_url
    prefix = url.removeprefix(server.url)
    assert web.get(f"{url}/hello/ann").json() == {"text": "HELLO ann", "began": True, "root": prefix}
    assert web.get(f"{wa.Pages(greeting='good day').web_url}/hello/bob").json()["text"] == "GOOD DAY bob"
    with connect(
        url.replace("http", "ws") + "/echo", additional_headers={"Authorization": f"Bearer {server.key}"}, proxy=None
    ) as socket:
        socket.send("ab")
        assert socket.recv() == "abab"
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(web.get(f"{url}/hello/x").status_code)) for _ in range(20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [200] * 20


def test_a_container_that_died_is_replaced(running: None, web: httpx.Client, http: httpx.Client) -> None:
    url = wa.plain.web_url
    assert web.get(f"{url}/passwd").status_code == 200
    label = {"label": f"isobox.function:{wa.plain.id}", "state": "running"}
    found = http.get("/v1/sandboxes", params=label).json()["sandboxes"]
    http.delete(f"/v1/sandboxes/{found[0]['id']}")
    until(lambda: web.get(f"{url}/passwd").status_code == 200)


def test_it_goes_on_when_the_server_dies(own_server: Server, web: httpx.Client) -> None:
    own_server.start()
    app = isobox.App("web-restart")

    @app.function(max_containers=1)
    @isobox.web_server(9000)
    def plain() -> None:

        subprocess.Popen(["python3", "-m", "http.server", "9000", "--directory", "/etc"])

    with app.run(url=own_server.url, api_key=own_server.key):
        headers = {"Authorization": f"Bearer {own_server.key}"}
        assert httpx.get(f"{plain.web_url}/passwd", headers=headers).status_code == 200
        own_server.kill()
        own_server.start()
        assert httpx.get(f"{plain.web_url}/passwd", headers=headers, timeout=60).status_code == 200
        with own_server.client() as http:
            assert http.get(f"/v1/functions/{plain.id}").json()["containers"] == 1
