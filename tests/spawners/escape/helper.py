"""What processes can be reached by, made by the hub's own user beside the hub. Standard library only.

`python helper.py FOLDER COUNTER`: makes socket files in FOLDER, and counts the SIGUSR2 it gets in the file COUNTER.
Prints what it made as one line of JSON, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import selectors
import signal
import socket
import sys
from pathlib import Path

LOWEST, HIGHEST = 5000, 9999  # outside of the servers' range, and of the ports that the system gives out


def tcp_listener() -> socket.socket:
    for port in range(LOWEST + secrets.randbelow(1000), HIGHEST):
        one = socket.socket()
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            one.close()
            continue
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        one.listen()
        return one
    raise SystemExit("no port is free")


def unix(kind: int, address: str) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, kind)
    one.bind(address)
    if kind == socket.SOCK_STREAM:
        one.listen()
    return one


def shared_by_name(name: str) -> dict[str, object]:
    """System V and POSIX objects, which only a name leads to."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    key = secrets.randbits(30) | 1
    segment = libc.shmget(key, 4096, 0o1600)
    ctypes.memmove(libc.shmat(segment, None, 0), b"secret", 6)
    queue, semaphores = libc.msgget(key, 0o1600), libc.semget(key, 1, 0o1600)
    posix = ctypes.CDLL("librt.so.1").mq_open(f"/{name}".encode(), os.O_RDWR | os.O_CREAT, 0o600, None)
    assert min(segment, queue, semaphores, posix) >= 0, (segment, queue, semaphores, posix)
    shared = Path("/dev/shm", name)
    shared.touch(0o600)
    shared.write_text("secret")
    return {
        "system_v_key": key,
        "system_v": [segment, queue, semaphores],
        "posix_queue": f"/{name}",
        "shared_memory": name,
    }


def forget(made: dict[str, object]) -> None:
    libc = ctypes.CDLL(None)
    segment, queue, semaphores = made["system_v"]  # type: ignore[misc]
    libc.shmctl(segment, 0, None)
    libc.msgctl(queue, 0, None)
    libc.semctl(semaphores, 0, 0)
    Path("/dev/shm", str(made["shared_memory"])).unlink()
    ctypes.CDLL("librt.so.1").mq_unlink(str(made["posix_queue"]).encode())


def main() -> None:
    folder, counter = Path(sys.argv[1]), Path(sys.argv[2])
    name = f"marimohub-probe-{secrets.token_hex(6)}"
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1
        counter.write_text(str(count))

    signal.signal(signal.SIGUSR2, counted)
    counter.write_text("0")
    counter.chmod(0o644)
    listener = tcp_listener()
    listeners = [
        listener,
        unix(socket.SOCK_STREAM, str(folder / "stream")),
        unix(socket.SOCK_STREAM, f"\0{name}"),
    ]
    datagrams = [unix(socket.SOCK_DGRAM, str(folder / "datagram")), unix(socket.SOCK_DGRAM, f"\0{name}-d")]
    _, terminal = os.openpty()
    made = {
        "helper": os.getpid(),
        "outside_port": listener.getsockname()[1],
        "socket_file": str(folder / "stream"),
        "datagram_file": str(folder / "datagram"),
        "abstract_name": name,
        "abstract_datagram": f"{name}-d",
        "terminal": os.ttyname(terminal),
        **shared_by_name(name),
    }
    print(json.dumps(made), flush=True)
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    for one in (*listeners, *datagrams):
        selector.register(one, selectors.EVENT_READ)
    while True:
        for ready, _ in selector.select():
            if ready.fileobj is sys.stdin:
                forget(made)
                return
            if ready.fileobj in listeners:
                connection, _ = ready.fileobj.accept()  # type: ignore[union-attr]
                with connection, contextlib.suppress(OSError):  # whoever only connected is gone
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            else:
                ready.fileobj.recv(100)  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
