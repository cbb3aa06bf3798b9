import json

from isolation.spec import DEFAULT, ROOT_CAPABILITIES, Resources, oci_spec


def test_the_spec_gives_nothing_away() -> None:
    spec = oci_spec(hostname="sbx", root="/r", image="/i.erofs", overlay="/o", resources=Resources(1, 256, 128, 64))
    process = spec["process"]
    assert process["noNewPrivileges"] is True
    assert set(process["capabilities"]["bounding"]) == {*ROOT_CAPABILITIES, "CAP_SETPCAP"}
    assert process["capabilities"]["inheritable"] == list(ROOT_CAPABILITIES)
    assert process["capabilities"]["ambient"] == []
    assert "CAP_SYS_ADMIN" not in json.dumps(spec)
    assert all(mount["type"] != "bind" for mount in spec["mounts"])
    sizes = {m["destination"]: m["options"] for m in spec["mounts"] if m["type"] == "tmpfs"}
    assert all(any(option.startswith("size=") for option in options) for options in sizes.values())
    assert set(spec["annotations"]) == {f"dev.gvisor.spec.rootfs.{name}" for name in ("type", "source", "overlay")}


def test_changes_are_bounded_by_a_folder_or_by_runsc_itself() -> None:
    def changes(overlay: str | None) -> list[str | None]:
        spec = oci_spec(hostname="x", root="/r", image="/i", overlay=overlay, resources=Resources(1, 256, 128, 64))
        return [spec["annotations"].get(f"dev.gvisor.spec.rootfs.{name}") for name in ("overlay", "options")]

    assert changes("/o") == ["dir=/o", None]
    assert changes(None) == ["memory", "size=128m"]


def test_process_one_refuses_namespaces_unless_it_is_told_otherwise() -> None:
    def process(namespaces: bool) -> dict[str, object]:
        asked = Resources(1, 256, 128, 64, namespaces=namespaces)
        found: dict[str, object] = oci_spec(hostname="x", root="/r", image="/i", overlay="/o", resources=asked)[
            "process"
        ]
        return found

    assert process(False)["env"] == []
    assert process(True) == process(False) | {"env": ["NAMESPACES=1"]}, "all else has to be the same in copies"


def test_pid_1_may_cover_its_descriptors_where_the_kernel_does_not() -> None:
    def capabilities(hides: bool) -> dict[str, list[str]]:
        spec = oci_spec(hostname="x", root="/r", image="/i", overlay=None, resources=DEFAULT, hides_descriptors=hides)
        found: dict[str, list[str]] = spec["process"]["capabilities"]
        return found

    assert "CAP_SYS_ADMIN" not in str(capabilities(False))
    hiding = capabilities(True)
    assert "CAP_SYS_ADMIN" in hiding["permitted"]
    assert "CAP_SYS_ADMIN" not in hiding["inheritable"], "what it starts never has it"
    assert set(capabilities(False)["permitted"]) > set(capabilities(False)["inheritable"]), (
        "so root may not trace PID 1"
    )
