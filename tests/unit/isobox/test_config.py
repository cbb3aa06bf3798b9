"""Which server, and which key."""

from pathlib import Path

import pytest

from isobox.config import Config
from isobox.errors import IsoboxError


def test_the_operators_key_is_asked_for_where_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ISOBOX_OPERATOR_KEY", raising=False)
    monkeypatch.setenv("ISOBOX_STATE", str(tmp_path))
    with pytest.raises(IsoboxError, match="ISOBOX_OPERATOR_KEY"):
        Config.find_operator()
    (tmp_path / "operator-key").write_text("from the file\n")
    assert Config.find_operator().api_key == "from the file"
    monkeypatch.setenv("ISOBOX_OPERATOR_KEY", "from the environment")
    assert Config.find_operator().api_key == "from the environment"


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://127.0.0.1:8700", "of this machine"),
        ("http://localhost:8700", "of this machine"),
        ("http://[::1]:8700/", "of this machine"),
        ("http://127.0.0.1.elsewhere.example", ""),
        ("http://localhost@elsewhere.example", ""),
        ("https://elsewhere.example", ""),
        ("http://[nonsense", ""),
    ],
)
def test_the_key_of_this_machines_server_goes_nowhere_else(
    url: str, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ISOBOX_API_KEY", raising=False)
    monkeypatch.setenv("ISOBOX_STATE", str(tmp_path))
    (tmp_path / "api-key").write_text("of this machine\n")
    assert Config.find(url).api_key == key
    assert Config.find(url, "given").api_key == "given"
