"""`make demo`: a server of its own, an agent at work, and nothing left behind."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI

from agent_examples import coding_agent, scripted_model
from common.signals import unwind_on_signals
from isobox import Sandbox


@contextmanager
def server() -> Iterator[None]:
    """A server on a free port with a state directory of its own; clients in this process use it."""
    with tempfile.TemporaryDirectory(prefix="isobox-demo-") as state:
        command = [sys.executable, "-m", "isobox.cli.main", "serve", "--state", state, "--listen", "127.0.0.1:0"]
        # In a session of its own: what a terminal sends to all in the foreground, as Ctrl-C does, is for us alone.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if " ready on " not in line:
                sys.exit("the server did not start; its words stand above")
            print(line, end="", flush=True)
            os.environ["ISOBOX_URL"] = line.split()[-1]
            os.environ["ISOBOX_API_KEY"] = (Path(state) / "api-key").read_text().strip()
            try:
                yield
            finally:
                for sandbox in Sandbox.list():  # the server would leave them to the next one
                    sandbox.terminate()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
            process.stdout.close()


def main() -> None:
    """Run the demo."""
    unwind_on_signals()
    with server(), scripted_model.serving() as model_url:
        print(f"task   {scripted_model.TASK}")
        client = OpenAI(base_url=model_url, api_key="none-needed")
        words = coding_agent.run(client, "scripted", scripted_model.TASK)
    if "north 6.0" not in words or "west no data" not in words:
        sys.exit("the agent did not finish its task")


if __name__ == "__main__":
    main()
