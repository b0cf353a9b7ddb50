"""Ports for what tests start."""

from __future__ import annotations

import errno
import random
import socket

_RANGE = range(20_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections: a connection of another test must not take a
port between its choice and the start of its server."""


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Return different ports at which nobody listens.

    They are drawn at random, so that two test processes that ask at the same time hardly get the same ones.
    """
    ports: list[int] = []
    # Not the generator of the module: tests seed it.
    for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
        if len(ports) == count:
            break
        if _is_free(address, port):
            ports.append(port)
    return ports


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        return True
