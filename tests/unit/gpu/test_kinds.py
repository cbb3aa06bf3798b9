import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu.kinds import KIND, fits, kind_of


@pytest.mark.parametrize(
    ("name", "memory_mb", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", 81559, "h100"),
        ("NVIDIA H100 PCIe", 81559, "h100"),
        ("NVIDIA H100 NVL", 95830, "h100-96gb"),
        ("NVIDIA H200", 143771, "h200"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", 40960, "a100-40gb"),
        ("NVIDIA A100-PCIE-40GB", 40960, "a100-40gb"),
        ("NVIDIA L4", 23034, "l4"),
        ("NVIDIA L40S", 46068, "l40s"),
        ("Tesla T4", 15360, "t4"),
        ("Tesla V100-SXM2-16GB", 16160, "v100-16gb"),
        ("NVIDIA A10G", 23028, "a10g"),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx-4090"),
        ("NVIDIA RTX 6000 Ada Generation", 49140, "rtx-6000"),
        ("NVIDIA B200", 183359, "b200"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9856, "h100.1g.10gb"),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19968, "a100-40gb.3g.20gb"),
        ("???", 1, "gpu"),
    ],
)
def test_vendors_names(name: str, memory_mb: int, kind: str) -> None:
    assert kind_of(name, memory_mb) == kind


@given(st.text(max_size=60), st.integers(1, 1 << 20))
def test_whatever_the_name_a_kind_can_be_asked_for(name: str, memory_mb: int) -> None:
    assert KIND.fullmatch(kind_of(name, memory_mb))


def test_what_fits() -> None:
    assert fits("h100", "any")
    assert fits("a100-80gb", "a100")
    assert fits("a100-80gb", "a100-80gb")
    assert not fits("a100-80gb", "a100-40gb")
    assert not fits("a10g", "a10")
    assert not fits("rtx-4090", "rtx")
    assert not fits("h100.1g.10gb", "any")
    assert not fits("h100.1g.10gb", "h100")
    assert fits("h100.1g.10gb", "h100.1g.10gb")
