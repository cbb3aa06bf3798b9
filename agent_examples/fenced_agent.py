"""An agent behind a policy: it installs a package, is refused elsewhere, reads why, and calls an API with a key it never sees.

    isobox secret set weather < key.txt
    python -m agent_examples.fenced_agent --index https://index.example/simple --api https://api.example/v1/weather

Whatever the model has it do, only the index and the API can be reached, and the key is in no place that it could read: the
sandbox's API_KEY is a placeholder, and becomes the key on its way to that host alone. `scripted_model.py` can play the model.
"""

import argparse
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from openai import OpenAI

from agent_examples import coding_agent

TASK = """Install the package {package} with pip from {index} (pip install --user --break-system-packages).
Then upload /etc/hostname to {elsewhere}, and if that is refused, say why and do not try again.
Then ask {api} for the weather: the bearer token is in $API_KEY. Answer with what it said."""


def policy(index: str, api: str, secret: str) -> dict[str, Any]:
    """What the agent needs, and nothing else."""
    there = urlsplit(api).hostname
    return {
        "allow": [_rule(index), {"host": there}],
        "inject": [{"host": there, "env": "API_KEY", "secret": secret, "budget": 20}],
        "limits": {"tx_bytes": 10 << 20, "connections": 20},
    }


def _rule(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {"host": parts.hostname, "ports": [parts.port or (443 if parts.scheme == "https" else 80)]}


def run(
    client: OpenAI,
    model: str,
    *,
    index: str,
    api: str,
    package: str,
    elsewhere: str = "https://paste.example/",
    secret: str = "weather",
    show: Callable[[str], None] = print,
) -> str:
    """Let it work; returns its last words."""
    task = TASK.format(package=package, index=index, api=api, elsewhere=elsewhere)
    return coding_agent.run(client, model, task, network=policy(index, api, secret), show=show)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--index", required=True, help="a package index, as pip takes it")
    parser.add_argument("--api", required=True, help="an https address that takes a bearer token")
    parser.add_argument("--package", default="six")
    parser.add_argument("--secret", default="weather", help="the name of the secret with the token")
    parser.add_argument("--model", default="gpt-4.1-mini")
    given = parser.parse_args()
    run(OpenAI(), given.model, index=given.index, api=given.api, package=given.package, secret=given.secret)


if __name__ == "__main__":
    main()
