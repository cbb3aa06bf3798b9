"""Web endpoints; fastapi and uvicorn come into the image as wheels that setup/testing.sh has fetched."""

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import isobox

app = isobox.App("web")
wheels = f"{os.environ.get('ISOBOX_CACHE', '/var/cache/isobox')}/testing/wheels"
image = (
    isobox.Image.base("python")
    .copy_local(wheels, "/tmp/wheels")
    .run(
        "python3 -m pip install --break-system-packages --no-index --find-links /tmp/wheels fastapi uvicorn websockets",
        "rm -rf /tmp/wheels",
    )
)


@app.function(max_containers=1)
@isobox.web_server(9000)
def plain() -> None:
    """A program of its own."""
    subprocess.Popen(["python3", "-m", "http.server", "9000", "--directory", "/etc"])


@app.function(max_containers=1)
@isobox.web_server(9000, startup_timeout=0.3)
def silent() -> None:
    """Listens nowhere."""


@app.function(image=image, max_containers=1)
@isobox.fastapi_endpoint(method="POST")
def add(a: int, b: int = 1) -> dict[str, int]:
    """A sum."""
    return {"sum": a + b}


@app.cls(image=image, max_containers=2)
class Pages:
    """An application of several pages, with something loaded before."""

    greeting: str = isobox.parameter(default="hello")

    @isobox.enter()
    def load(self) -> None:
        """Before anybody comes."""
        self.loaded = self.greeting.upper()

    @isobox.asgi_app()
    def pages(self) -> Any:
        """FastAPI, imported inside alone."""
        import fastapi

        @asynccontextmanager
        async def lifespan(_: Any) -> AsyncIterator[None]:
            self.began = True
            yield

        pages = fastapi.FastAPI(lifespan=lifespan)

        @pages.get("/hello/{name}")
        def hello(name: str, request: fastapi.Request) -> dict[str, Any]:
            return {"text": f"{self.loaded} {name}", "began": self.began, "root": request.scope["root_path"]}

        @pages.websocket("/echo")
        async def echo(socket: fastapi.WebSocket) -> None:
            await socket.accept()
            await socket.send_text((await socket.receive_text()) * 2)
            await socket.close()

        hello.__annotations__["request"] = fastapi.Request
        return pages
