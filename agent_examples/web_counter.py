"""A web endpoint: a program in a container that answers HTTP, reached through the server with its API key.

    python -m agent_examples.web_counter

It takes nothing but Python; `@isobox.asgi_app()` and `@isobox.fastapi_endpoint()` do the same for applications of
Starlette and FastAPI, in images that have them.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import isobox

app = isobox.App("web-counter")
PORT = 8080


class Counter(BaseHTTPRequestHandler):
    """Counts how often each path was asked for."""

    seen: dict[str, int] = {}

    def do_GET(self) -> None:
        """Answer with the path and its count."""
        self.seen[self.path] = self.seen.get(self.path, 0) + 1
        body = json.dumps({"path": self.path, "count": self.seen[self.path]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@app.function(max_containers=1)
@isobox.web_server(PORT)
def counter() -> None:
    """Begin to listen."""
    threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", PORT), Counter).serve_forever, daemon=True).start()


def run(paths: list[str], *, show: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Ask for each path."""
    import httpx  # not there inside, where this module is imported too

    from isobox.config import Config

    found = []
    with app.run(), httpx.Client(headers=Config.find().headers, timeout=60) as http:
        show(counter.web_url)
        for path in paths:
            found.append(http.get(f"{counter.web_url}{path}").raise_for_status().json())
            show(f"{path}: {found[-1]['count']}")
    return found


if __name__ == "__main__":
    run(["/", "/about", "/"])
