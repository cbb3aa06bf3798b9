"""What can go wrong with a sandbox's network.

IsoboxError
└── NetworkError
    ├── PolicyInvalid         a policy that cannot be used; the text names the rule
    ├── NetworkUnavailable    this machine cannot give sandboxes a network, or has no slot left
    └── GatewayUnavailable    the gateway does not answer; nothing gets out meanwhile
"""

from common.errors import IsoboxError


class NetworkError(IsoboxError):
    """Anything this package raises on purpose."""


class PolicyInvalid(NetworkError):
    """A policy that cannot be used."""


class NetworkUnavailable(NetworkError):
    """No network to be had on this machine."""


class GatewayUnavailable(NetworkError):
    """The gateway does not answer."""
