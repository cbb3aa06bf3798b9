"""Named network namespaces beside those of ip-netns(8)."""

import subprocess
import sys

# In a mount namespace where nobody has made a named network namespace since the machine started.
FRESH = ["unshare", "--mount", "--propagation", "private"]
WORK = """
import subprocess
from pathlib import Path
from netpolicy import namespaces

def others():
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()

subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
namespaces.create("isobox-test-1")
subprocess.run(["ip", "netns", "add", "theirs"], check=True)
assert others() == ["theirs", "isobox-test-1"], others()
namespaces.create("isobox-test-1")
namespaces.remove("isobox-test-1")
namespaces.remove("isobox-test-1")
assert others() == ["theirs"], others()

subprocess.run(["umount", "--lazy", "/run/netns"], check=True)
Path("/run/netns/isobox-test-2").touch()
subprocess.run(["mount", "--bind", "/proc/self/ns/net", "/run/netns/isobox-test-2"], check=True)
subprocess.run(["mount", "--bind", "/run/netns", "/run/netns"], check=True)
try:
    namespaces.remove("isobox-test-2")
except OSError as error:
    print(error)
"""


def test_other_tools_namespaces_do_not_get_in_the_way() -> None:
    done = subprocess.run([*FRESH, sys.executable, "-c", WORK], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "umount /run/netns, and try again: '/run/netns/isobox-test-2'" in done.stdout
