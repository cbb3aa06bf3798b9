"""An agent that is asked to speed up a numeric task: it looks which GPUs are free, takes one if that helps, and says so if not.

    python -m agent_examples.gpu_agent

The first turn chooses the machine, from what `isobox.gpus()` tells; then `coding_agent.py` does the work there.
`scripted_model.py` can play the model.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable

from openai import OpenAI

import isobox
from agent_examples import coding_agent

TASK = """Time the product of two 512 x 512 matrices in Python as fast as this machine allows, and print the seconds."""
CHOOSE = """You are about to work on this task:

{task}

GPUs that are free now: {free}. Choose a machine with choose_machine: the kind of GPU, or "none" if there is none or if it
would not help, and why."""
TOOL = coding_agent.tool("choose_machine", "Choose where to work.", kind="a free kind, or none", why="a short reason")


def choose(client: OpenAI, model: str, task: str, free: dict[str, int]) -> tuple[str | None, str]:
    """The kind of GPU that the model wants, None for no GPU, and why."""
    there = ", ".join(f"{count} x {kind}" for kind, count in sorted(free.items())) or "none"
    asked = CHOOSE.format(task=task, free=there)
    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": asked}], tools=[TOOL], tool_choice="required"
    )
    for call in reply.choices[0].message.tool_calls or []:
        if call.type == "function" and call.function.name == "choose_machine":
            found = json.loads(call.function.arguments)
            kind = str(found.get("kind", "none"))
            return (kind if kind in free else None), str(found.get("why", ""))
    return None, "the model did not choose"


def run(client: OpenAI, model: str, *, task: str = TASK, show: Callable[[str], None] = print) -> str:
    """Let it choose and work; returns its last words."""
    free = Counter(each.kind for each in isobox.gpus() if each.state == "free")
    kind, why = choose(client, model, task, dict(free))
    machine = f"with a {kind}" if kind else "without a GPU"
    show(f"agent  I work {machine}: {why}")
    return coding_agent.run(client, model, f"{task}\nYou work {machine}.", gpu=kind, show=show)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="gpt-4.1-mini")
    run(OpenAI(), parser.parse_args().model)


if __name__ == "__main__":
    main()
