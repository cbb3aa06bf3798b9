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
