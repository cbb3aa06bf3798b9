import pytest

from gpu import driver, libraries, outfit
from gpu.device import Device
from gpu.errors import GpuUnusable

SUPPORTED = ["525.60.13", "535.104.05", "550.54.15", "550.90.07"]


def test_versions_are_read_from_what_runsc_prints() -> None:
    assert driver.parse_supported("525.60.13\n550.54.15\nsome words\n") == ["525.60.13", "550.54.15"]


def test_an_abi_is_chosen_or_the_mend_told() -> None:
    assert driver.choose_abi("550.54.15", SUPPORTED, "") == "550.54.15"
    assert driver.choose_abi("580.1", SUPPORTED, "latest") == "550.90.07"
    assert driver.choose_abi("580.1", SUPPORTED, "535.104.05") == "535.104.05"
    for version, override, words in (
        ("580.65.06", "", "ISOBOX_GPU_DRIVER_ABI=latest"),
        ("530.1.1", "", "install one of these drivers"),
        ("550.54.15", "1.2.3", "does not know the driver ABI 1.2.3"),
    ):
        with pytest.raises(GpuUnusable) as refused:
            driver.choose_abi(version, SUPPORTED, override)
        assert words in f"{refused.value.detail} {refused.value.hint}"
    with pytest.raises(GpuUnusable):
        driver.choose_abi("550.54.15", [], "latest")


def test_nodes_of_these_devices_and_no_others() -> None:
    two = [Device(f"GPU-{n}", n, n, "", "h100", 1, "") for n in (1, 5)]
    assert [(each.path, each.major, each.minor) for each in outfit.nodes(two, 511)] == [
        ("/dev/nvidiactl", 195, 255),
        ("/dev/nvidia-uvm", 511, 0),
        ("/dev/nvidia1", 195, 1),
        ("/dev/nvidia5", 195, 5),
    ]
    part = Device("MIG-1", 0, 0, "", "h100.1g.10gb", 1, "", parent="GPU-0")
    with pytest.raises(GpuUnusable, match="whole GPUs alone"):
        outfit.nodes([part], 511)
    assert outfit.environment(["a", "b"])["CUDA_VISIBLE_DEVICES"] == "a,b"


def test_libraries_of_64_bits_from_the_loaders_cache() -> None:
    listing = (
        "3 libs found in cache `/etc/ld.so.cache'\n"
        "\tlibcuda.so.1 (libc6) => /lib/i386/libcuda.so.1\n"
        "\tlibcuda.so.1 (libc6,x86-64) => /lib/x86_64/libcuda.so.1\n"
        "\tlibm.so.6 (libc6,x86-64, OS ABI: Linux 3.2.0) => /lib/x86_64/libm.so.6\n"
    )
    assert libraries.parse_listing(listing) == {
        "libcuda.so.1": "/lib/x86_64/libcuda.so.1",
        "libm.so.6": "/lib/x86_64/libm.so.6",
    }
