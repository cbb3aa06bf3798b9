"""Destinations as a person types them."""

import pytest
import typer

from isobox.cli.net import rule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("api.example.com", {"host": "api.example.com"}),
        ("*.example.com:443,8000-8100", {"host": "*.example.com", "ports": [443, "8000-8100"]}),
        ("203.0.113.0/24:5432", {"cidr": "203.0.113.0/24", "ports": [5432]}),
        ("203.0.113.7", {"cidr": "203.0.113.7"}),
    ],
)
def test_forms(text: str, expected: dict[str, object]) -> None:
    assert rule(text) == expected


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("https://user@example.com:8443/simple", "name its host: example.com:8443"),
        ("example.com:https", "example.com:443"),
        ("example.com:", "example.com:443"),
    ],
)
def test_mistakes_are_told_with_what_to_type(text: str, hint: str) -> None:
    with pytest.raises(typer.BadParameter, match=hint):
        rule(text)
