"""A listening socket for each server, made by the hub out of a range of TCP ports."""

from __future__ import annotations

import errno
import os
import random
import socket

BACKLOG = 128


class NoPort(Exception):
    """There is no port to listen on; the text is a sentence."""


def overlap(one: tuple[int, int], others: tuple[tuple[int, int], ...]) -> bool:
    """Whether a range has a port in common with any of the others."""
    return any(low <= one[1] and one[0] <= high for low, high in others)


def listen(host: str, ports: tuple[int, int]) -> socket.socket:
    """A socket that listens on a free port of a range.

    Raises:
        NoPort: all are in use, or the address is not this machine's.
    """
    low, high = ports
    first = random.SystemRandom().randint(low, high)
    for port in (*range(first, high + 1), *range(low, first)):
        try:
            return _listen(host, port)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                reason = os.strerror(error.errno) if error.errno else error
                raise NoPort(f"Servers cannot listen on {host}: {reason}. Check LocalMarimoSpawner.ip.") from error
    which = f"port {low} is" if low == high else f"all ports from {low} to {high} are"
    raise NoPort(f"A server needs a TCP port, but {which} in use. Change LocalMarimoSpawner.port_range.")


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # what is left of connections to an earlier server is in nobody's way
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
