"""Ports for servers that tests start."""

import random
import socket

# Below those that Linux gives to connections going out, one of which may take a port between our look and its use.
_PORTS = range(10_000, 32_000)


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    chance = random.SystemRandom()
    while True:
        port = chance.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
