"""What a container finds in the place of isobox while it imports a caller's file."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from isobox.functions.bundle import bundle


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("with isobox.Sandbox.create():\n    pass\n", "isobox.Sandbox.create does nothing in a container"),
        ("with isobox.App('demo').run():\n    pass\n", "app demo runs already"),
    ],
)
def test_work_of_the_callers_is_refused_with_the_guard_to_write(tmp_path: Path, script: str, told: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(bundle(pytest.raises).archive)) as archive:
        archive.extractall(tmp_path, filter="data")
    done = subprocess.run(
        [sys.executable, "-c", f"import isobox\n{script}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert told in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr
