"""WebSockets for the proxy benchmark: an echo server, a client that waits for each echo, and many idle ones.

`python -m benchmarks.proxy_sockets echo` prints its port and serves until its standard input ends.
`… rate PORT N SECONDS` prints echoes per second and their 99th percentile in ms. `… idle PORT N` prints how many are
open, and holds them until its standard input ends. Frames are of one size and masked with zeros, and both ends are
plain loops over epoll, to cost less than the proxy between them.
"""

from __future__ import annotations

import resource
import select
import socket
import sys
import time

from benchmarks.common import percentile

PATH = "/user/echo/ws"
PAYLOAD = bytes(range(32))
SENT = bytes([0x81, 0x80 | len(PAYLOAD)]) + bytes(4) + PAYLOAD
ECHOED = bytes([0x81, len(PAYLOAD)]) + PAYLOAD
HANDSHAKE = (
    f"GET {PATH} HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
).encode()
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def whole(parts: dict[int, bytes], number: int, data: bytes, expected: bytes) -> bool:
    """Whether `expected` is complete with this data; raises ValueError for anything else than its beginning."""
    data = parts.pop(number, b"") + data
    if data != expected:
        if not data or not expected.startswith(data):
            raise ValueError(f"The proxy changed a frame or closed the connection: {data!r}")
        parts[number] = data
        return False
    return True


def echo() -> None:
    """Serve until standard input ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    poll.register(sys.stdin, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    parts: dict[int, bytes] = {}
    heads: dict[int, bytes] = {}
    while True:
        for number, _ in poll.poll():
            if number == sys.stdin.fileno():
                return
            if number == listener.fileno():
                connection, _ = listener.accept()
                connections[connection.fileno()] = connection
                heads[connection.fileno()] = b""
                poll.register(connection, select.EPOLLIN)
                continue
            try:
                data = connections[number].recv(4096)
            except ConnectionError:
                data = b""
            if not data:
                poll.unregister(number)
                parts.pop(number, None)
                connections.pop(number).close()
            elif number in heads:
                heads[number] += data
                if heads[number].endswith(b"\r\n\r\n"):
                    del heads[number]
                    connections[number].send(ACCEPTED)
            elif whole(parts, number, data, SENT):
                connections[number].send(ECHOED)


def connect(port: int, number: int) -> list[socket.socket]:
    """Open WebSockets. Raises ConnectionError."""
    connections: list[socket.socket] = []
    while len(connections) < number:
        batch = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(min(100, number - len(connections)))]
        for connection in batch:
            connection.sendall(HANDSHAKE)
        for connection in batch:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                data = connection.recv(4096)  # nothing follows until we ask
                if not data:
                    raise ConnectionError("closed before the handshake was complete")
                head += data
            if b" 101 " not in head.splitlines()[0]:
                raise ConnectionError(head.decode("latin-1"))
        connections += batch
    return connections


def rate(port: int, number: int, seconds: float) -> None:
    """As many echoes as there can be, one at a time on each connection."""
    connections = {one.fileno(): one for one in connect(port, number)}
    poll = select.epoll()
    since: dict[int, float] = {}
    for one in connections.values():
        poll.register(one, select.EPOLLIN)
        since[one.fileno()] = time.perf_counter()
        one.send(SENT)
    took: list[float] = []
    parts: dict[int, bytes] = {}
    start = time.perf_counter()
    while (now := time.perf_counter()) < start + seconds:
        for fd, _ in poll.poll(1):
            if whole(parts, fd, connections[fd].recv(4096), ECHOED):
                now = time.perf_counter()
                took.append(now - since[fd])
                since[fd] = now
                connections[fd].send(SENT)
    print(len(took) / (now - start), percentile(took, 99) * 1000, flush=True)


def idle(port: int, number: int) -> None:
    connections = connect(port, number)
    print(len(connections), flush=True)
    sys.stdin.read()


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    what, *arguments = sys.argv[1:]
    if what == "echo":
        echo()
    elif what == "rate":
        rate(int(arguments[0]), int(arguments[1]), float(arguments[2]))
    else:
        idle(int(arguments[0]), int(arguments[1]))


if __name__ == "__main__":
    main()
