from pathlib import Path

from isolation.cgroups import parse_mounts, plan, plan_root
from isolation.spec import Resources

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = """31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 30 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
"""
SMALL = Resources(cpu=0.5, memory_mb=100, disk_mb=28, pids=50)


def test_layouts() -> None:
    assert parse_mounts(V2).unified == Path("/sys/fs/cgroup")
    hybrid = parse_mounts(HYBRID)
    assert hybrid.unified is None
    assert hybrid.v1["cpuacct"] == hybrid.v1["cpu"] == Path("/sys/fs/cgroup/cpu,cpuacct")


def test_plans_bound_cpu_memory_without_swap_and_pids() -> None:
    v2 = {name: value for _, name, value, _ in plan(parse_mounts(V2), SMALL)}
    assert v2["cpu.max"] == "50000 100000"
    # 100 and 28 MiB, and 256 for the time in which its largest process is killed.
    assert (v2["memory.max"], v2["memory.swap.max"]) == (str(384 << 20), "0")
    v1 = {name: value for _, name, value, _ in plan(parse_mounts(HYBRID), SMALL)}
    assert v1["memory.limit_in_bytes"] == v1["memory.memsw.limit_in_bytes"] == str(384 << 20)
    # A full pids cgroup panics the sentry: it must come after every RLIMIT_NPROC.
    assert int(v1["pids.max"]) > 2.2 * SMALL.pids + 60


def test_all_guests_together_weigh_less_than_one_service() -> None:
    """Defaults: 100 for a group of v2, 1024 shares for one of v1 (and for a process beside it)."""
    assert plan_root(parse_mounts(V2)) == [("", "cpu.weight", "25")]
    assert plan_root(parse_mounts(HYBRID)) == [("cpu", "cpu.shares", "256")]
