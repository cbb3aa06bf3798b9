"""A tree search by forks: at each decision the sandbox is copied, every idea runs in a copy, the best copy goes on.

    python -m agent_examples.tree_search

The task: make a table of measurements small, step by step, so that it can still be got back. An idea is a few lines of
Python that change `data` and append to `undo`; what it is worth is measured, not believed: the copy must give the table
back before its size counts. Nothing is recomputed: a copy has the interpreter, with all that it holds.

Ideas come from any OpenAI-compatible endpoint (--model, OPENAI_BASE_URL, OPENAI_API_KEY), or offline from a fixed list.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from openai import OpenAI

from isobox import ExecResult, Sandbox

SETUP = """
import bz2, lzma, random, struct, zlib
random.seed(7)
value, rows = 500_000, []
for second in range(6000):
    value += random.choice([-2, -1, -1, 0, 0, 0, 1, 1, 2])
    rows.append(value)
table = struct.pack(f"<{len(rows)}i", *rows)
data, undo = table, []
"""
CHECK = """
restored = data
for step in reversed(undo):
    restored = step(restored)
assert restored == table, "the table cannot be got back"
len(data)
"""
IDEAS = {
    "differences": """
numbers = struct.unpack(f"<{len(data) // 4}i", data)
data = struct.pack(f"<{len(numbers)}i", *(b - a for a, b in zip((0, *numbers), numbers)))
def from_differences(raw):
    total, out = 0, []
    for step in struct.unpack(f"<{len(raw) // 4}i", raw):
        total += step
        out.append(total)
    return struct.pack(f"<{len(out)}i", *out)
undo.append(from_differences)
""",
    "bytes by place": """
data = b"".join(data[place::4] for place in range(4))
undo.append(lambda raw: bytes(raw[p * (len(raw) // 4) + i] for i in range(len(raw) // 4) for p in range(4)))
""",
    "zlib": "data = zlib.compress(data, 9); undo.append(zlib.decompress)",
    "lzma": "data = lzma.compress(data); undo.append(lzma.decompress)",
    "only the first half": "data = data[: len(data) // 2]",
    "a typing mistake": "data = bz2.compres(data)",
}
"""Two of them are bad on purpose: one loses data, one does not run."""

Propose = Callable[[Sequence[str], int], dict[str, str]]
"""From the steps taken and the size reached: ideas by name. None left ends the search."""


@dataclass(frozen=True, slots=True)
class Step:
    """An idea that was tried: the size it reached, or why it does not count."""

    name: str
    size: int | None
    problem: str = ""


def offline(taken: Sequence[str], _: int) -> dict[str, str]:
    """Every idea of the list that was not taken yet."""
    return {name: code for name, code in IDEAS.items() if name not in taken}


def by_model(client: OpenAI, model: str) -> Propose:
    """Ideas of a language model."""

    def propose(taken: Sequence[str], size: int) -> dict[str, str]:
        prompt = (
            f"In Python there are `data` (bytes, {size} long; at first little-endian int32 measurements that change slowly) and "
            f"`undo` (a list of functions bytes -> bytes). Steps taken: {list(taken)}. Propose up to 4 further steps that make data "
            "smaller, now or later, as a JSON object {name: code}. Code sets data and appends its inverse to undo; struct, zlib, bz2 "
            "and lzma are imported. Answer {} if nothing is left to gain."
        )
        reply = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], response_format={"type": "json_object"}
        )
        found = json.loads(reply.choices[0].message.content or "{}")
        return {str(name)[:40]: str(code) for name, code in found.items() if name not in taken}

    return propose


def attempt(child: Sandbox, name: str, code: str) -> Step:
    """Try an idea in a copy, and see that the table can still be got back."""
    for part in (code, CHECK):
        result: ExecResult = child.run(part, timeout_s=30)
        if result.error is not None:
            return Step(name, None, f"{result.error.name}: {result.error.message}")
    return Step(name, int(result.text))


def search(propose: Propose, *, depth: int = 4, show: Callable[[str], None] = print) -> tuple[list[str], int]:
    """Search; returns the steps of the best way and the size it reaches."""
    best = Sandbox.create(labels={"agent": "tree-search"})
    taken: list[str] = []
    try:
        best.run(SETUP).check()
        size = int(best.run(CHECK).check().text)
        show(f"the table takes {size} bytes")
        for _ in range(depth):
            if not (ideas := propose(taken, size)):
                break
            children = best.fork(len(ideas))
            with ThreadPoolExecutor(len(ideas)) as threads:
                steps = list(threads.map(attempt, children, ideas, ideas.values()))
            for step in steps:
                show(f"  {step.name}: {f'{step.size} bytes' if step.size is not None else step.problem}")
            order = sorted(range(len(steps)), key=lambda n: (steps[n].size is None, steps[n].size))
            for n, child in enumerate(children):
                if n != order[0]:
                    child.terminate()
                    child.close()
            winner = steps[order[0]]
            # A step that gains nothing by itself (bytes by place) may pay later, so equal is good enough.
            if winner.size is None or (winner.size > size):
                children[order[0]].terminate()
                children[order[0]].close()
                break
            best.terminate()
            best.close()
            best, size = children[order[0]], winner.size
            taken.append(winner.name)
            show(f"→ {winner.name}")
        return taken, size
    finally:
        best.terminate()
        best.close()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a model's name; without it the ideas come from a list")
    arguments = parser.parse_args()
    taken, size = search(by_model(OpenAI(), arguments.model) if arguments.model else offline)
    print(f"best: {' → '.join(taken) or 'nothing'}, {size} bytes")


if __name__ == "__main__":
    main()
