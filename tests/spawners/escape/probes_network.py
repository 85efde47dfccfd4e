"""Probes of sockets: other people's servers, the proxy's administration, and whatever else listens on the machine."""

from __future__ import annotations

import os
import socket
import struct

from tests.spawners.escape.probing import Denied, Targets, any_of, probe

_MPTCP, _SCTP, _SMC_FAMILY, _FASTOPEN, _FASTOPEN_CONNECT = 262, 132, 43, 0x20000000, 30


def _connect(family: int, address: tuple[str, int], protocol: int = 0) -> str:
    with socket.socket(family, socket.SOCK_STREAM, protocol) as one:
        one.settimeout(2)
        one.connect(address)
        return f"connected to {address[0]}:{address[1]}"


def _ask(connection: socket.socket) -> str:
    connection.settimeout(2)
    connection.sendall(b"GET /api HTTP/1.0\r\nHost: localhost\r\n\r\n")
    return connection.recv(20).decode("latin-1")


def _fast_open(port: int) -> str:
    """Connects and sends in one call, which is another way through the kernel than connect()."""
    with socket.socket() as one:
        one.settimeout(2)
        one.sendto(b"GET /api HTTP/1.0\r\n\r\n", _FASTOPEN, ("127.0.0.1", port))
        return one.recv(20).decode("latin-1")


def _fast_open_message(port: int) -> str:
    with socket.socket() as one:
        one.settimeout(2)
        one.sendmsg([b"GET /api HTTP/1.0\r\n\r\n"], [], _FASTOPEN, ("127.0.0.1", port))
        return one.recv(20).decode("latin-1")


def _fast_open_option(port: int) -> str:
    with socket.socket() as one:
        one.settimeout(2)
        one.setsockopt(socket.IPPROTO_TCP, _FASTOPEN_CONNECT, 1)
        one.connect(("127.0.0.1", port))
        return _ask(one)


@probe()
def connect_to_others_server(targets: Targets) -> object:
    return _connect(socket.AF_INET, ("127.0.0.1", targets["victim_port"]))


@probe()
def connect_to_others_server_by_ipv6(targets: Targets) -> object:
    return _connect(socket.AF_INET6, ("::ffff:127.0.0.1", targets["victim_port"]))


@probe()
def connect_to_others_server_by_multipath(targets: Targets) -> object:
    return _connect(socket.AF_INET, ("127.0.0.1", targets["victim_port"]), _MPTCP)


@probe()
def connect_to_others_server_by_fast_open(targets: Targets) -> object:
    port = targets["victim_port"]
    return any_of(
        {
            "sendto": lambda: _fast_open(port),
            "sendmsg": lambda: _fast_open_message(port),
            "option": lambda: _fast_open_option(port),
        }
    )


@probe()
def connect_to_own_server(targets: Targets) -> object:
    """Past the gate's reach: only the browser of the person is to talk to it."""
    return _connect(socket.AF_INET, ("127.0.0.1", targets["own_port"]))


@probe()
def listen_on_a_port(targets: Targets) -> object:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        return f"listens on {one.getsockname()[1]}"


@probe()
def listen_on_others_port(targets: Targets) -> object:
    """A port of the servers' range: whoever is there first gets the next person's browser."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", targets["free_server_port"]))
        one.listen()
        return "listens"


@probe()
def listen_without_binding(targets: Targets) -> object:
    """The system then gives a port, and asks nobody."""
    with socket.socket() as one:
        one.listen()
        return f"listens on {one.getsockname()[1]}"


@probe()
def ask_envoys_administration(targets: Targets) -> object:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(targets["envoy_admin"])
        return _ask(one)


@probe()
def connect_to_socket_files(targets: Targets) -> object:
    """Sockets of the hub's own user: its desktop bus, its ssh agent, its Docker engine."""

    def ask(path: str) -> str:
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(path)
            return "connected"

    def send(path: str) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.sendto(b"x", path)
            return "sent"

    def through_folder(path: str) -> str:
        """By a short way, as a long path would be."""
        os.chdir(os.path.dirname(path))
        return ask(os.path.basename(path))

    path = targets["socket_file"]
    return any_of(
        {
            "stream": lambda: ask(path),
            "datagram": lambda: send(targets["datagram_file"]),
            "relative": lambda: through_folder(path),
        }
    )


@probe()
def connect_to_abstract_sockets(targets: Targets) -> object:
    def ask() -> str:
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(f"\0{targets['abstract_name']}")
            return "connected"

    def send() -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.sendto(b"x", f"\0{targets['abstract_datagram']}")
            return "sent"

    return any_of({"stream": ask, "datagram": send})


@probe()
def list_sockets_of_the_machine(targets: Targets) -> object:
    """sock_diag tells the paths and inodes of all Unix sockets, and destroys TCP connections for root."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as one:
        one.settimeout(1)
        # nlmsghdr, then unix_diag_req for all states, with names
        body = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, 1, 0, 0)
        one.sendto(struct.pack("=IHHII", 16 + len(body), 20, 0x301, 1, 0) + body, (0, 0))
        return f"{len(one.recv(65536))} bytes"


@probe()
def use_other_kinds_of_sockets(targets: Targets) -> object:
    """Doors into rarely used parts of the kernel, and to the machine's host."""
    kinds = {
        "AF_ALG": (38, socket.SOCK_SEQPACKET, 0),
        "AF_VSOCK": (40, socket.SOCK_STREAM, 0),
        "AF_SMC": (_SMC_FAMILY, socket.SOCK_STREAM, 0),
        "SCTP": (socket.AF_INET, socket.SOCK_STREAM, _SCTP),
        "UDP-Lite": (socket.AF_INET, socket.SOCK_DGRAM, 136),
    }
    return any_of({name: lambda kind=kind: socket.socket(*kind).close() or "made" for name, kind in kinds.items()})


@probe("root")
def use_raw_sockets(targets: Targets) -> object:
    kinds = {"raw": (socket.AF_INET, socket.SOCK_RAW, 1), "packet": (17, socket.SOCK_RAW, 0x300)}
    return any_of({name: lambda kind=kind: socket.socket(*kind).close() or "made" for name, kind in kinds.items()})


@probe()
def reach_a_closed_network(targets: Targets) -> object:
    """Where the administrator closed it: nothing but the hub."""
    return _connect(socket.AF_INET, ("127.0.0.1", targets["outside_port"]))


@probe()
def send_datagrams_from_a_closed_network(targets: Targets) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", targets["outside_port"]))
        return "sent"


def _made_by(one: socket.socket) -> int:
    """The process that made a pair of sockets."""
    found: int = struct.unpack("3i", one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return found


def _descriptors() -> dict[int, str]:
    """Number and what it leads to, of this process."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the list itself
            continue
    return found


@probe()
def inherited_descriptors(targets: Targets) -> object:
    """Files outside of the person's folders, sockets of the internet (the server's own takes connections), and pairs of
    sockets that others made: of the hub, the spawn server or the guard."""
    allowed = ("pipe:", "anon_inode:", "/dev/null", "/memfd:", *targets["own_files"])
    found = []
    for number, leads_to in _descriptors().items():
        if leads_to.startswith("socket:"):
            with socket.socket(fileno=os.dup(number)) as one:
                if one.family != socket.AF_UNIX or _made_by(one) in targets["foreign_pids"].values():
                    found.append(f"{number}: {one.family.name} socket")
        elif not leads_to.startswith(allowed):
            found.append(f"{number}: {leads_to}")
    if not found:
        raise Denied("nothing of others")
    return "; ".join(found)


@probe()
def reopen_inherited_files(targets: Targets) -> object:
    """The server's log is there to be written to; by its descriptor one could open it anew, to read what is in it."""
    ways = {
        leads_to: lambda number=number: os.close(os.open(f"/proc/self/fd/{number}", os.O_RDWR)) or "opened"
        for number, leads_to in _descriptors().items()
        if leads_to.startswith("/") and not leads_to.startswith(("/dev/", "/memfd:"))
    }
    if not ways:
        raise Denied("there are none")
    return any_of(ways)
