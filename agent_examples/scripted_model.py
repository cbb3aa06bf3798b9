"""A small model server for offline use and for CI: OpenAI's chat completions over HTTP, answered by rules.

It is no language model, yet it plays fair: what it does next follows from the tool results it is sent. Its first
program has a bug; it mends it only if the sandbox's structured error says which one.
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TASK = "Write /home/user/stats.py: print the mean of each column of sales.csv. Some columns are empty. Check it."
DATA = "north,south,west\n3,10,\n5,20,\n10,60,\n"
BUGGY = """import csv

def mean(values):
    return sum(values) / len(values)

with open("sales.csv") as file:
    rows = list(csv.DictReader(file))
for name in rows[0]:
    print(name, mean([float(row[name]) for row in rows if row[name]]))
"""
MENDED = BUGGY.replace("return sum", 'return "no data" if not values else sum')


def _call(name: str, **arguments: str) -> dict[str, Any]:
    return {"tool": name, "arguments": arguments}


def decide(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The next step: {"say"} or {"tool", "arguments"}, from what has happened so far. Pure."""
    results = [json.loads(message["content"]) for message in messages if message["role"] == "tool"]
    steps = len(results)
    if steps == 0:
        return _call("write_file", path="/home/user/sales.csv", contents=DATA) | {"say": "I put some data there first."}
    if steps == 1:
        return _call("write_file", path="/home/user/stats.py", contents=BUGGY) | {"say": "Now the program."}
    last = results[-1]
    if "outcome" not in last:
        return _call("run_command", command="python3 stats.py") | {"say": "Let us see whether it runs."}
    error = last.get("error")
    if error is None and last["outcome"]["exit_code"] == 0:
        return {"say": f"Done. stats.py prints:\n{last['stdout']}"}
    if error is not None and error["name"] == "ZeroDivisionError" and error["frames"][-1]["function"] == "mean":
        frame = error["frames"][-1]
        where = f"{frame['function']}, line {frame['line']}: `{frame['source']}`"
        say = f"{error['name']} in {where}. A column without values."
        return _call("write_file", path="/home/user/stats.py", contents=MENDED) | {"say": say}
    return {"say": f"I cannot mend this: {json.dumps(error or last)}"}


def decide_behind_a_fence(messages: list[dict[str, Any]], task: str) -> dict[str, Any]:
    """The same for `fenced_agent.py`'s task. Pure."""
    package, index = re.findall(r"package (\S+) with pip from (\S+) ", task)[0]
    elsewhere, api = re.findall(r"hostname to (\S+),", task)[0], re.findall(r"ask (\S+) for", task)[0]
    results = [json.loads(message["content"]) for message in messages if message["role"] == "tool"]
    if not results:
        host = index.split("/")[2].partition(":")[0]
        pip = f"pip install --user --break-system-packages --quiet --index-url {index} --trusted-host {host} {package}"
        return _call("run_command", command=f"{pip} && python3 -c 'import {package}'") | {"say": "First the package."}
    last = results[-1]
    if len(results) == 1:
        if last["outcome"]["exit_code"]:
            return {"say": f"I cannot install it: {last.get('stderr')}"}
        upload = f"curl -sS -m 10 -T /etc/hostname {elsewhere}"
        return _call("run_command", command=upload) | {"say": f"{package} is there. Now the upload."}
    if len(results) == 2:
        refused = last.get("refused_by_network_policy")
        if not refused:
            return {"say": f"The upload was not refused: {json.dumps(last)}"}
        ask = f'curl -sS -m 10 -H "Authorization: Bearer $API_KEY" {api}'
        words = f"Refused: {refused[0]['reason']} ({refused[0]['hint']}). I leave it at that, and ask for the weather."
        return _call("run_command", command=ask) | {"say": words}
    return {"say": f"The API says: {last['stdout'].strip()}"}


PRODUCT = """import os, time

size = 160
a = [[float(i + j) for j in range(size)] for i in range(size)]
began = time.perf_counter()
columns = list(zip(*a))
product = [[sum(x * y for x, y in zip(row, column)) for column in columns] for row in a]
print(f"{time.perf_counter() - began:.3f} s, GPU: {os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}")
"""


def decide_on_a_machine(task: str) -> dict[str, Any]:
    """The first turn of `gpu_agent.py`. Pure."""
    free = re.findall(r"\d+ x (\S+?)[,.]? ", task.partition("free now: ")[2].partition("Choose")[0] + " ")
    if free:
        return _call("choose_machine", kind=free[0], why="a matrix product is what a GPU is made for")
    return _call("choose_machine", kind="none", why="no GPU is free here, so the processor has to do")


def decide_on_a_product(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What follows. Pure."""
    results = [json.loads(message["content"]) for message in messages if message["role"] == "tool"]
    if not results:
        return _call("write_file", path="/home/user/product.py", contents=PRODUCT) | {"say": "A program first."}
    if len(results) == 1:
        return _call("run_command", command="python3 product.py")
    return {"say": f"It took {results[-1].get('stdout', '').strip()}"}


def completion(request: dict[str, Any]) -> dict[str, Any]:
    """An answer in OpenAI's form."""
    task = next(message["content"] for message in request["messages"] if message["role"] == "user")
    if task.startswith("Install the package"):
        step = decide_behind_a_fence(request["messages"], task)
    elif task.startswith("You are about to work"):
        step = decide_on_a_machine(task)
    elif "matrices" in task:
        step = decide_on_a_product(request["messages"])
    else:
        step = decide(request["messages"])
    message: dict[str, Any] = {"role": "assistant", "content": step.get("say")}
    if "tool" in step:
        function = {"name": step["tool"], "arguments": json.dumps(step["arguments"])}
        message["tool_calls"] = [{"id": f"call_{len(request['messages'])}", "type": "function", "function": function}]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if "tool" in step else "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return {
        "id": "chatcmpl-scripted", "object": "chat.completion", "created": int(time.time()), "model": request["model"],
        "choices": [choice], "usage": usage,
    }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Answer a completion."""
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        found = self.path == "/v1/chat/completions"
        body = json.dumps(completion(json.loads(raw)) if found else {"error": {"message": "no such path"}}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[str]:
    """Serve on a free port of the loopback; gives the base URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()
