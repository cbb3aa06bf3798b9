from pathlib import Path

import pytest

from sandbox_api import doctor
from sandbox_api.settings import Settings


def test_authorities_of_the_machine_that_sandboxes_lack_are_told_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LOCAL_AUTHORITIES", tmp_path)
    assert "none but" in doctor._authorities(Settings())
    (tmp_path / "proxy.crt").write_text("")
    told = doctor._authorities(Settings())
    assert "proxy.crt" in told
    assert "ISOBOX_CA_BUNDLE=" in told
    assert "accept 2 certificates" in doctor._authorities(Settings(ca_bundle=(b"1", b"2")))
