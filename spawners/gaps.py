"""What a sandbox leaves open, or breaks, on this machine: sentences for the Admin page and the log."""

from __future__ import annotations

import os

from marimohub.spawners import landlock, view
from marimohub.spawners.job import Sandbox

_NO_VIEW = (
    "this system does not let ordinary users make user namespaces (see user.max_user_namespaces, "
    "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, or the container's seccomp "
    "profile), which would hide the rest of the file system"
)


def missing(sandbox: Sandbox, *, own_user: bool, version: int | None = None, private: bool | None = None) -> list[str]:
    """What this kernel and this configuration leave open, or break, though a sandbox is in force.

    Blocks for some 30 ms at the first call.

    Args:
        own_user: as for `confine`.
        version: for tests: as if the kernel had this Landlock ABI.
        private: for tests: whether servers get a view of the file system of their own.

    Returns:
        Sentences for administrators, the gravest first.
    """
    version = landlock.abi() if version is None else version
    root = os.geteuid() == 0
    private = view.possible(root) if private is None else private
    found = _missing_of_kernel(version, own_user)
    found += _missing_of_view(version, own_user) if not private else []
    if sandbox.connect is None:
        found.append("Notebooks can connect to every TCP port, also those of other people's servers.")
    if sandbox.connect is None or any(low <= 80 <= high for low, high in sandbox.connect):
        found.append(
            "Notebooks can connect to port 80. In a cloud, the metadata service (169.254.169.254) may give them the "
            "machine's credentials there: block that address in a firewall, or leave port 80 out of outbound_ports."
        )
    if sandbox.datagrams:
        found.append(
            "Notebooks can send UDP packets to every address and port: Landlock has no rule for them, and names are "
            "looked up by them. Close outbound ports to stop it."
        )
    if not (private and view.hides_processes(root)) and not _proc_is_hidden():
        found.append(
            "Notebooks can see which processes run on this machine, and their command lines; no secret is in those of "
            "the hub. Mount /proc with hidepid=invisible to hide them."
        )
    found.append(
        "Notebooks can listen on a TCP port that the system picks (above 32767 as a rule): Landlock is asked at bind, "
        "not at listen. A firewall in front of this machine keeps others from it."
    )
    return found


def _missing_of_kernel(version: int, own_user: bool) -> list[str]:
    has = f"and this kernel has ABI {version}"
    found = []
    if not landlock.has_scopes(version):
        found.append(
            "Notebooks can connect to other programs' abstract Unix sockets: Linux 6.12 (Landlock ABI 6) stops it, "
            f"{has}."
            if own_user
            else "Notebooks can send signals to the hub and to other people's servers, and so end them: Linux 6.12 "
            f"(Landlock ABI 6) stops it, {has}. Run the hub as root, so that each person gets a user id of their own."
        )
    if not landlock.has_net(version):
        found.append(
            "Notebooks can connect to every TCP port of this machine and listen on every free one: Linux 6.7 (Landlock "
            f"ABI 4) confines them, {has}."
        )
    if not landlock.has_truncate(version) and not own_user:
        found.append(
            "Notebooks can make files empty that they may only read, such as their snapshot: Linux 6.2 (Landlock ABI "
            f"3) stops it, {has}."
        )
    return found


def _missing_of_view(version: int, own_user: bool) -> list[str]:
    if own_user:
        if landlock.has_unix(version):
            return []
        return [
            "Notebooks can connect to Unix sockets that are open to every user of this machine, such as the system's "
            "D-Bus: root may not mount here (a container without CAP_SYS_ADMIN), which would hide them."
        ]
    return [
        "Notebooks can see the size and change the permissions and times, not the content, of those files of the hub "
        f"whose path they know: they run as the same user, and {_NO_VIEW}. Run the hub as root, so that each person "
        "gets a user id of their own.",
        "Notebooks share /dev/shm: one that guesses the name of another's shared memory can open it, and what they "
        "leave there stays.",
        "Notebooks have no terminal"
        + ("" if landlock.has_unix(version) else ", and no Unix sockets, which some of Python's multiprocessing needs")
        + ": those of the hub's user could not be told from their own.",
    ]


def _proc_is_hidden() -> bool:
    """Source: proc(5), hidepid."""
    with open("/proc/self/mounts") as file:
        lines = [line.split() for line in file]
    options = [line[3].split(",") for line in lines if line[1] == "/proc" and line[2] == "proc"]
    return bool(options) and any(
        o in options[-1] for o in ("hidepid=2", "hidepid=4", "hidepid=invisible", "hidepid=ptraceable")
    )
