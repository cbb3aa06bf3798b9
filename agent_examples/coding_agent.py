"""A coding agent: it writes a program in a sandbox, runs it, reads the structured error, mends it, and finishes.

    python -m agent_examples.coding_agent "Write a program that …"

It speaks to any OpenAI-compatible endpoint: OPENAI_BASE_URL and OPENAI_API_KEY as usual, the model by --model.
`scripted_model.py` is one that needs no network.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from isobox import ExecResult, GpuAsk, IsoboxError, Policy, Sandbox

SYSTEM = """You are a coding agent with a Linux sandbox. Write files with write_file, run commands with run_command.
What may leave the sandbox is a policy: `refused_by_network_policy` says what was refused and what to ask for.
A command that fails comes with a structured `error` (name, message, frames, hint): read it, mend the cause, run again.
When the task is done and checked, answer with a short summary and no tool call."""
MAX_TURNS = 20


def tool(name: str, description: str, **parameters: str) -> ChatCompletionToolParam:
    """A tool as the model is told of it: its parameters are texts, all of them needed."""
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = [
    tool("write_file", "Write a file, replacing it.", path="absolute path", contents="the whole text"),
    tool("run_command", "Run a shell command in /home/user and wait for it.", command="a line for sh"),
    tool("read_output", "Read more of a command's output.", exec_id="its id", stream="stdout or stderr", offset="byte"),
]


class Tools:
    """The tools, on one sandbox. Everything a model sends is checked here, at the edge."""

    def __init__(self, sandbox: Sandbox, show: Callable[[str], None] = print) -> None:
        self._sandbox = sandbox
        self._show = show

    def call(self, name: str, arguments: str) -> dict[str, Any]:
        """Call a tool; what goes wrong is an answer too."""
        tools: dict[str, Callable[..., dict[str, Any]]] = {
            "write_file": self._write_file,
            "run_command": self._run_command,
            "read_output": self._read_output,
        }
        try:
            return tools[name](**json.loads(arguments))
        except (KeyError, TypeError, ValueError) as error:
            return {"problem": f"no such tool call: {error}"}
        except IsoboxError as error:
            return {"problem": str(error)}

    def _write_file(self, path: str, contents: str) -> dict[str, Any]:
        return {"written_bytes": self._sandbox.files.write(path, contents).size}

    def _run_command(self, command: str) -> dict[str, Any]:
        process = self._sandbox.start(shell=command, stdin=False, timeout_s=60)
        refused = []
        for event in process:  # live, for whoever watches
            if event.type in ("stdout", "stderr"):
                for line in event.text.splitlines():
                    self._show(f"       │ {line}")
            elif event.type == "network":
                self._show(f"       ✗ {event.info['reason']}")
                refused.append(event.info)
        found = summary(process.poll(max_output_bytes=8000))
        return found | ({"refused_by_network_policy": refused} if refused else {})

    def _read_output(self, exec_id: str, stream: str, offset: str) -> dict[str, Any]:
        data = self._sandbox.process(exec_id).output(stream, offset=int(offset), limit=8000)
        return {"text": data.decode(errors="replace"), "next_offset": int(offset) + len(data)}


def summary(result: ExecResult) -> dict[str, Any]:
    """What a model needs to know of an exec."""
    raw = result.raw
    found = {key: raw[key] for key in ("id", "outcome", "stdout", "stderr", "truncated", "error")}
    return {key: value for key, value in found.items() if value}


def run(
    client: OpenAI,
    model: str,
    task: str,
    *,
    image: str = "python",
    network: Policy | None = None,
    gpu: GpuAsk | None = None,
    show: Callable[[str], None] = print,
) -> str:
    """Let the agent work on a task in a sandbox of its own; returns its last words. network: what may leave it."""
    messages: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": task},
    ]
    with Sandbox.create(image, labels={"agent": "coding"}, network=network, gpu=gpu) as sandbox:
        show(f"sandbox {sandbox.id}")
        tools = Tools(sandbox, show)
        for _ in range(MAX_TURNS):
            reply = client.chat.completions.create(model=model, messages=messages, tools=TOOLS).choices[0].message
            messages.append(reply.model_dump(exclude_none=True))  # type: ignore[arg-type]  # a reply is a message
            if reply.content:
                show(f"agent  {reply.content}")
            if not reply.tool_calls:
                return reply.content or ""
            for call in reply.tool_calls:
                if call.type != "function":
                    continue
                show(f"  →    {call.function.name} {_short(call.function.arguments)}")
                answer = tools.call(call.function.name, call.function.arguments)
                show(f"  ←    {_short(json.dumps(answer))}")
                messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(answer)})
    raise RuntimeError(f"the agent did not finish within {MAX_TURNS} turns")


def _short(text: str, width: int = 300) -> str:
    return text if len(text) <= width else f"{text[:width]} … ({len(text)} characters)"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("--model", default="gpt-4.1-mini")
    arguments = parser.parse_args()
    run(OpenAI(), arguments.model, arguments.task)


if __name__ == "__main__":
    main()
