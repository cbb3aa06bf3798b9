"""An OCI image's config: what its maker meant for what runs in it. Pure. Source: OCI image-spec, config.md."""

from typing import Any, Final

from common.text import clean_json

_ENTRIES_MAX: Final = 1000
_TEXT_MAX: Final = 32 << 10


def read(raw: dict[str, Any]) -> dict[str, Any]:
    """`env`, `workdir`, `user` and `command` of a config, those that it has and that are what they should be."""
    raw = clean_json(raw)
    said = raw.get("config") if isinstance(raw.get("config"), dict) else {}
    assert isinstance(said, dict)
    found: dict[str, Any] = {}
    env = {}
    for each in _texts(said.get("Env")):
        name, equals, value = each.partition("=")
        if equals and name:
            env[name] = value
    if env:
        found["env"] = env
    if isinstance(where := said.get("WorkingDir"), str) and where.startswith("/") and ".." not in where.split("/"):
        found["workdir"] = where[:4095]
    if isinstance(user := said.get("User"), str) and user:
        found["user"] = user[:64]
    if command := [*_texts(said.get("Entrypoint")), *_texts(said.get("Cmd"))]:
        found["command"] = command
    return found


def write(config: dict[str, Any], diff_id: str) -> dict[str, Any]:
    """The config of an image of one layer."""
    said: dict[str, Any] = {}
    if env := config.get("env"):
        said["Env"] = [f"{name}={value}" for name, value in sorted(env.items())]
    for name, key in (("workdir", "WorkingDir"), ("user", "User"), ("command", "Cmd")):
        if config.get(name):
            said[key] = config[name]
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": said,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "isobox"}],
    }


def diff_ids(raw: dict[str, Any]) -> list[str]:
    """The digests of its layers before compression."""
    rootfs = raw.get("rootfs")
    return _texts(rootfs.get("diff_ids")) if isinstance(rootfs, dict) else []


def _texts(raw: Any) -> list[str]:
    if not isinstance(raw, list):
        return []
    return [
        each for each in raw[:_ENTRIES_MAX] if isinstance(each, str) and len(each) <= _TEXT_MAX and "\0" not in each
    ]
