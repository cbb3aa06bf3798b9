"""An object with something large loaded, begun once: every later container starts from a copy of its memory.

    python -m agent_examples.snapshot_model

The "model" says which word follows which, counted over the manual that Python ships; a real one would be weights.
"""

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import isobox

app = isobox.App("snapshot-model")


@app.cls(cpu=1, memory=512, max_containers=3, scaledown_window=10)
class Words:
    """Continues sentences."""

    length: int = isobox.parameter(default=12)

    @isobox.enter(snap=True)
    def load(self) -> None:
        """Read and count; what is slow is in here, and in the copy."""
        from pydoc_data.topics import topics

        began = time.monotonic()
        self.following: dict[str, Counter[str]] = defaultdict(Counter)
        for text in topics.values():
            words = text.split()
            for first, second in pairwise(words):
                self.following[first][second] += 1
        self.loaded_in_s = time.monotonic() - began
        self.loaded_as = random.randbytes(4).hex()

    @isobox.method()
    def go_on(self, word: str) -> tuple[str, str, float]:
        """A sentence that begins with a word; which loading it is of, and how long that took."""
        said = [word]
        while len(said) < self.length and (found := self.following.get(said[-1])):
            said.append(random.choices(list(found), list(found.values()))[0])
        time.sleep(0.2)  # so that one container is not enough
        return " ".join(said), self.loaded_as, self.loaded_in_s


def run(words: list[str], *, show: Callable[[str], None] = print) -> list[tuple[str, str, float]]:
    """A sentence for each word."""
    with app.run():
        model: Any = Words
        found: list[tuple[str, str, float]] = list(model(length=10).go_on.map(words))
    for sentence, loaded_as, loaded_in_s in found:
        show(f"{sentence:60.60}  (loaded once in {loaded_in_s:.2f} s, as {loaded_as})")
    return found


if __name__ == "__main__":
    run(["The", "If", "A", "For", "This", "An"])
