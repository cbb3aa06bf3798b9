from ipaddress import IPv4Network
from pathlib import Path

import pytest

from netpolicy.policy import parse
from sandbox_api.settings import Settings, SettingsError


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("EGRESS_BLOCK", "8.8.8.0/24", "private"),
        ("EGRESS_BLOCK", "10.0.0.0/8", "/16 to /26"),
        ("EGRESS_BLOCK", "10.0.0.1/16", "host bits"),
        ("EGRESS_DNS", "nope", "octets"),
        ("EGRESS_DNS", "", "ADDRESS"),
        ("EGRESS_FLOOR_HOLES", "10.0.0.0/33", "10.0.0.0/33"),
        ("EGRESS_DENY", '[{"host": "*"}]', "wildcard"),
        ("EGRESS_DENY", "{", ""),
        ("EGRESS_PRESETS", "/nowhere", "no such file"),
        ("EGRESS_TRUST", "/nowhere", "no such file"),
        ("CA_BUNDLE", "/nowhere", "no such file"),
        ("CA_BUNDLE", "/etc/hostname", "certificates in PEM"),
        ("NETWORK", "perhaps", "0 or 1"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=f"ISOBOX_{name}=") as refused:
        Settings.from_environment({f"ISOBOX_{name}": text})
    assert words in refused.value.detail


def test_settings_of_egress(tmp_path: Path) -> None:
    (tmp_path / "presets.json").write_text('{"models": {"allow": [{"host": "api.test"}]}}')
    found = Settings.from_environment(
        {
            "ISOBOX_EGRESS_BLOCK": "10.9.0.0/20",
            "ISOBOX_EGRESS_DNS": "192.0.2.1, 192.0.2.2:5353",
            "ISOBOX_EGRESS_FLOOR_HOLES": "10.1.0.0/16,192.168.7.0/24",
            "ISOBOX_EGRESS_DENY": '[{"host": "bad.test"}]',
            "ISOBOX_EGRESS_PRESETS": str(tmp_path / "presets.json"),
        }
    )
    egress = found.egress()
    assert egress.block == IPv4Network("10.9.0.0/20")
    assert egress.resolvers == (("192.0.2.1", 53), ("192.0.2.2", 5353))
    assert egress.holes == (IPv4Network("10.1.0.0/16"), IPv4Network("192.168.7.0/24"))
    assert egress.deny == parse({"deny": [{"host": "bad.test"}]}).deny
    assert found.egress_presets == {"models": parse({"allow": [{"host": "api.test"}]})}
    assert Settings().egress_presets == {}
