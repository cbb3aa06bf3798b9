"""Whom a registry may send a user's password to."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs.oci.login import Login

LOGIN = Login("user:secret")


def may(realm: str, registry: str, auth_host: str | None = None) -> bool:
    return Login("user:secret", auth_host).may_go_to(httpx.URL(realm), httpx.URL(registry))


@pytest.mark.parametrize(
    ("realm", "registry"),
    [
        ("https://auth.docker.io/token", "https://registry-1.docker.io/v2/"),
        ("https://ghcr.io/token", "https://ghcr.io/v2/"),
        ("https://gitlab.com/jwt/auth", "https://registry.gitlab.com/v2/"),
        ("https://nvcr.io/proxy_auth", "https://nvcr.io:443/v2/"),
        ("https://registry.example.co.uk:5000/t", "https://registry.example.co.uk:5000/v2/"),
        ("https://auth.example.co.uk/t", "https://registry.example.co.uk:5000/v2/"),
        ("http://127.0.0.1:5000/token", "http://127.0.0.1:5000/v2/"),
        ("https://AUTH.Docker.io/token", "https://registry-1.docker.io/v2/"),
    ],
)
def test_where_registries_give_their_tokens(realm: str, registry: str) -> None:
    assert may(realm, registry)


@pytest.mark.parametrize(
    ("realm", "registry"),
    [
        ("https://evil.example/token", "https://registry-1.docker.io/v2/"),
        ("https://registry-1.docker.io@evil.example/token", "https://registry-1.docker.io/v2/"),
        ("https://registry-1.docker.io.evil.example/token", "https://registry-1.docker.io/v2/"),
        ("https://evil.co.uk/t", "https://registry.example.co.uk/v2/"),
        ("https://evil.github.io/t", "https://registry.github.io/v2/"),
        ("https://co.uk/t", "https://co.uk.example/v2/"),
        ("http://auth.docker.io/token", "https://registry-1.docker.io/v2/"),
        ("http://registry-1.docker.io/token", "https://registry-1.docker.io/v2/"),
        ("https://auth.docker.io:8443/token", "https://registry-1.docker.io/v2/"),
        ("http://127.0.0.1:5001/token", "http://127.0.0.1:5000/v2/"),
        ("https://127.0.0.1/token", "http://127.0.0.2:5000/v2/"),
        ("http://localhost:5000/token", "http://127.0.0.1:5000/v2/"),
        ("http://other/token", "http://registry/v2/"),
        ("ftp://registry.example.com/token", "https://registry.example.com/v2/"),
        ("/token", "https://registry.example.com/v2/"),
        ("", "https://registry.example.com/v2/"),
    ],
)
def test_no_other_host_hears_of_it(realm: str, registry: str) -> None:
    assert not may(realm, registry)


def test_the_one_that_the_user_named() -> None:
    registry = "https://registry.example.com/v2/"
    assert may("https://login.example.net/t", registry, "login.example.net")
    assert may("https://login.example.net:8443/t", registry, "login.example.net:8443")
    assert may("https://[2001:db8::1]:8443/t", registry, "[2001:db8::1]:8443")
    assert not may("https://login.example.net:8443/t", registry, "login.example.net")
    assert not may("https://sub.login.example.net/t", registry, "login.example.net")
    assert not may("http://login.example.net/t", registry, "login.example.net"), "the registry has TLS"
    assert may("http://127.0.0.1:5001/t", "http://127.0.0.1:5000/v2/", "127.0.0.1:5001")


@given(st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8}){0,3}", fullmatch=True), st.sampled_from(["http", "https"]))
def test_who_may_know_it_is_the_host_or_shares_its_last_two_labels(host: str, scheme: str) -> None:
    if may(f"{scheme}://{host}/t", "https://registry.example.com/v2/"):
        assert scheme == "https"
        assert host.split(".")[-2:] == ["example", "com"]
