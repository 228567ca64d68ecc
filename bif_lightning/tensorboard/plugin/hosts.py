"""Checks the Host header of requests to a server that is bound to this machine alone.

A page of any origin can point its own host name at 127.0.0.1 and then read what is served there (DNS rebinding). Such a
request carries the name of that page's host.
"""

import ipaddress
from collections.abc import Collection


def host_of(header: str) -> str:
    """The name or address in a Host header, without the port.

    >>> host_of("localhost:6006"), host_of("[::1]:6006"), host_of("Example.ORG")
    ('localhost', '::1', 'example.org')
    """
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def is_loopback(name: str) -> bool:
    """Whether a name or address can only mean this machine.

    >>> [is_loopback(name) for name in ("localhost", "127.0.0.1", "::1", "evil.example", "192.168.0.1")]
    [True, True, True, False, False]
    """
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def may_ask(header: str, bound_to: str, allowed: Collection[str]) -> bool:
    """Whether a request with this Host header is answered.

    Args:
        header: of the request.
        bound_to: name or address that the server listens on; empty for all.
        allowed: further names.
    """
    if not is_loopback(bound_to):
        return True
    name = host_of(header)
    return is_loopback(name) or name in allowed
