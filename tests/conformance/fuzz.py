"""Asks a server odd things and says what it did wrong. Run by hand for more seeds: python tests/conformance/fuzz.py FIRST COUNT [EACH]."""

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parent))

import httpx
from odd_requests import Generator, Operation, Request, operations
from scene import Scene, end_everything, scene, second_tenant
from server import Server

METHODS_PASSED_ON = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
NOT_DOCUMENTED = tuple(
    Operation(method, path, f"{method} {path}", tuple({"name": name, "in": "path", "required": True, "schema": {}} for name in names), bytes_body=method in ("POST", "PUT"))
    for path, names in (
        ("/v1/sandboxes/{sandbox_id}/ports/{port}", ("sandbox_id", "port")),
        ("/v1/sandboxes/{sandbox_id}/ports/{port}/x", ("sandbox_id", "port")),
        ("/v1/functions/{function_id}/web", ("function_id",)),
        ("/v1/apps/{app}/web/{function}", ("app", "function")),
    )
    for method in METHODS_PASSED_ON
)  # fmt: skip
"""Ways through to programs inside: they are in no document."""

ENDING = ("terminate", "pause", "resume", "fork", "stop", "delete", "retire", "prune", "end_run", "cancel")
"""What an operation is named for that takes something away, or makes more: these come last, and on other ids."""

REFUSED_OUT_OF_NEED = frozenset({502, 503, 504, 507})
"""Answers beyond 499 that are no failure of the server's, if a clear problem document says why."""

FIELDS = {"type", "title", "status", "code", "detail", "hint", "retryable", "request_id"}


def ends_something(operation: Operation) -> bool:
    """Whether things would be gone after it."""
    return operation.method == "DELETE" or operation.id.startswith(ENDING)


def send(http: httpx.Client, request: Request, **headers: str) -> httpx.Response:
    """Send it as it stands; of a stream only the head is read."""
    raw = httpx.URL(http.base_url).copy_with(raw_path=request.target.encode())
    given = [*request.headers, *((name.encode(), value.encode()) for name, value in headers.items())]
    sent = http.build_request(request.method, raw, headers=given, content=request.content)
    answer = http.send(sent, stream=True)
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        answer.close()
        return httpx.Response(answer.status_code, headers=answer.headers)
    answer.read()
    answer.close()
    return answer


def fault(operation: Operation, answer: httpx.Response) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if answer.status_code < 400:
        return None
    if operation in NOT_DOCUMENTED and answer.headers.get("content-type") != "application/problem+json":
        return None  # the program's own
    if answer.status_code >= 500 and answer.status_code not in REFUSED_OUT_OF_NEED:
        return "it failed"
    if operation.method == "HEAD":
        return None
    if answer.headers.get("content-type") != "application/problem+json":
        return "no problem document"
    document = answer.json()
    if set(document) != FIELDS or document["status"] != answer.status_code or not document["detail"]:
        return "an odd problem document"
    return "it failed inside" if document["code"] == "internal" else None


def faults(
    http: httpx.Client, document: dict[str, Any], found: Scene, random: Random, each: int
) -> Iterator[tuple[Request, httpx.Response | str, str]]:
    """Ask each operation what it allows, and `each` times what it does not: the requests that went wrong."""
    makes = Generator(document, random, found.known)
    ordered = sorted((*NOT_DOCUMENTED, *operations(document)), key=ends_something)
    for operation in ordered:
        for number in range(each + 1):
            request = makes.valid(operation) if number == 0 and not ends_something(operation) else makes.odd(operation)
            try:
                answer = send(http, request)
            except httpx.HTTPError as error:
                # A program inside may break its answer off; and not all that lies in a root folder can be packed.
                if operation not in NOT_DOCUMENTED and not ("archive" in operation.path and operation.method == "GET"):
                    yield request, repr(error), "no answer"
                continue
            if (why := fault(operation, answer)) is not None:
                yield request, answer, why


def strangers(document: dict[str, Any], found: Scene, random: Random) -> Iterator[tuple[Operation, Request]]:
    """For each operation on something that is there one request that would do something to it."""
    makes = Generator(document, random, found.known)
    for operation in (*operations(document), *NOT_DOCUMENTED):
        if any(parameter["in"] == "path" for parameter in operation.parameters):
            yield operation, makes.valid(operation)


def told(request: Request, answer: httpx.Response | str, why: str) -> str:
    """A fault in a few lines."""
    said = answer if isinstance(answer, str) else f"{answer.status_code} {answer.text[:300]}"
    return f"{why}: {request.method} {request.target[:300]} {request.headers} {(request.content or b'')[:600]!r}\n  -> {said}"


def main() -> None:
    """Many seeds, a server for each few."""
    first, count, each = (int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 8)
    import signal
    import tempfile

    signal.signal(signal.SIGTERM, signal.default_int_handler)

    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        second_tenant(state)
        server = Server(state, ISOBOX_MAX_SANDBOXES="8").start()
        try:
            with server.client() as http:
                document = http.get("/openapi.json").json()
                for seed in range(first, first + count):
                    with scene(server, http) as found:
                        for request, answer, why in faults(http, document, found, Random(seed), each):
                            print(f"seed {seed}", told(request, answer, why), flush=True)
                    end_everything(http)
                    for name in http.get("/v1/images").json()["images"]:
                        if name["source"] != {"machine": True}:
                            http.delete(f"/v1/images/{name['id']}")
                    for kind in ("dicts", "queues"):
                        for each_ in http.get(f"/v1/{kind}").json()["objects"]:
                            http.delete(f"/v1/{kind}/{each_['name']}")
                    for each_ in http.get("/v1/volumes").json()["volumes"]:
                        http.delete(f"/v1/volumes/{each_['name']}")
        finally:
            print(server.log()[-200_000:], file=sys.stderr)
            with server.client() as http:
                end_everything(http)
            server.end()


if __name__ == "__main__":
    main()
