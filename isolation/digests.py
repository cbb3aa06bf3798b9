"""Tells whether a runsc is the one that setup found or fetched: by the digest that setup/runsc.sh wrote down.

CACHE/runsc/digests has a line per binary, with tabs: sha512, release, source, stamp, path. Whoever writes to a file
changes its stamp (it has the time of the last change, which nobody can set), so that the digest is computed for files
alone whose stamp is another.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HINT: Final = "if you changed it, delete CACHE/runsc/digests and run `make setup`; if not, find out who did"


@dataclass(frozen=True, slots=True)
class Known:
    """A binary as it was when setup looked."""

    sha512: str
    release: str
    source: str
    stamp: str


def parse(text: str) -> dict[str, Known]:
    """Read the lines, by path; those that are none of ours are left out."""
    fields = (line.split("\t", 4) for line in text.splitlines())
    return {line[4]: Known(*line[:4]) for line in fields if len(line) == 5}


def stamp(facts: os.stat_result) -> str:
    """What `stat -c '%d %i %s %.9Y %.9Z'` prints."""
    times = (f"{ns // 10**9}.{ns % 10**9:09}" for ns in (facts.st_mtime_ns, facts.st_ctime_ns))
    return " ".join([str(facts.st_dev), str(facts.st_ino), str(facts.st_size), *times])


def known(path: Path, cache: Path) -> Known | None:
    """What setup wrote down about a binary; None where it never saw it."""
    try:
        text = (cache / "runsc" / "digests").read_text(errors="replace")
    except FileNotFoundError:
        return None
    return parse(text).get(str(path.resolve()))


def change(path: Path, cache: Path) -> str | None:
    """Say how a binary differs from the one that setup saw; None where it does not, or setup never saw it. Blocks."""
    before = known(path, cache)
    if before is None or stamp(path.stat()) == before.stamp:
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").hexdigest()
    if digest == before.sha512:
        return None
    return f"{path} is not what setup saw (release {before.release}, {before.source}): its digest is {digest[:16]}…"
