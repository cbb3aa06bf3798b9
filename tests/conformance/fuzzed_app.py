"""An app that lies on the server while it is asked odd things."""

import subprocess

import isobox

app = isobox.App("fuzzed")


@app.function(max_containers=1)
def double(x: int) -> int:
    """Twice."""
    return 2 * x


@app.function(max_containers=1)
@isobox.web_server(9000)
def page() -> None:
    """Listens."""
    subprocess.Popen(["python3", "-m", "http.server", "9000", "--directory", "/etc"])
