"""Probes of files: what belongs to the hub, to other people, or to the system."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat

from tests.spawners.escape.probing import Denied, Targets, any_of, call, libc, probe


def _read(path: str) -> str:
    with open(path, "rb") as file:
        return f"{len(file.read(4096))} bytes"


def _open_for_writing(path: str) -> str:
    """Nothing is changed."""
    os.close(os.open(path, os.O_WRONLY))
    return "opened for writing"


def _own(targets: Targets, name: str) -> str:
    """A path in the person's own home that nothing has."""
    path = os.path.join(targets["own_home"], f"{name}.{os.getpid()}")
    if os.path.lexists(path):
        os.unlink(path)
    return path


@probe()
def read_warehouse(targets: Targets) -> object:
    return _read(targets["warehouse"])


@probe()
def read_hub_database(targets: Targets) -> object:
    return _read(targets["hub_database"])


@probe()
def read_cookie_secret(targets: Targets) -> object:
    return _read(targets["cookie_secret"])


@probe()
def read_masking_key(targets: Targets) -> object:
    return _read(targets["masking_key"])


@probe()
def read_hub_configuration(targets: Targets) -> object:
    return _read(targets["configuration"])


@probe()
def read_server_logs(targets: Targets) -> object:
    """Also one's own: what a start failed by is for administrators."""
    return any_of({path: lambda path=path: _read(path) for path in targets["server_logs"]})


@probe()
def list_data_folder(targets: Targets) -> object:
    return any_of({path: lambda path=path: os.listdir(path) for path in targets["hub_folders"]})


@probe()
def list_temporary_files(targets: Targets) -> object:
    folder, name = os.path.split(targets["file_in_temp"])
    if name not in os.listdir(folder):
        raise Denied("it is a folder of one's own")
    return "found it"


@probe()
def read_file_in_temporary_folder(targets: Targets) -> object:
    return _read(targets["file_in_temp"])


@probe()
def read_others_home(targets: Targets) -> object:
    return _read(targets["victim_home_file"])


@probe()
def list_others_home(targets: Targets) -> object:
    return os.listdir(targets["victim_home"])


@probe()
def read_others_notebook(targets: Targets) -> object:
    return _read(targets["victim_notebook"])


@probe()
def read_others_snapshot(targets: Targets) -> object:
    return _read(targets["victim_snapshot"])


@probe()
def read_snapshot_cache(targets: Targets) -> object:
    """The shelf where all snapshots are, with masks and without."""
    return os.listdir(targets["snapshot_cache"])


@probe()
def write_others_home(targets: Targets) -> object:
    return _open_for_writing(targets["victim_home_file"])


@probe()
def create_in_others_home(targets: Targets) -> object:
    path = os.path.join(targets["victim_home"], "planted.py")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)
    return "created a file"


@probe()
def delete_others_file(targets: Targets) -> object:
    return os.unlink(targets["sacrifices"]["delete"])


@probe()
def truncate_others_file(targets: Targets) -> object:
    return os.truncate(targets["sacrifices"]["truncate"], 1)


@probe()
def rename_others_file_to_own_folder(targets: Targets) -> object:
    os.rename(targets["sacrifices"]["rename"], _own(targets, "taken"))
    return "renamed"


@probe()
def rename_own_file_over_others(targets: Targets) -> object:
    path = _own(targets, "given")
    with open(path, "w"):
        pass
    os.rename(path, targets["sacrifices"]["overwrite"])
    return "renamed"


@probe()
def exchange_files_with_others(targets: Targets) -> object:
    path = _own(targets, "exchanged")
    with open(path, "w"):
        pass
    there = targets["sacrifices"]["exchange"].encode()
    return call(libc.renameat2(-100, path.encode(), -100, there, 2))  # AT_FDCWD, RENAME_EXCHANGE


@probe()
def hard_link_to_warehouse(targets: Targets) -> object:
    path = _own(targets, "linked")
    os.link(targets["warehouse"], path)
    return _read(path)


@probe()
def hard_link_to_others_file(targets: Targets) -> object:
    path = _own(targets, "linked_too")
    os.link(targets["victim_home_file"], path)
    return _read(path)


@probe()
def symbolic_link_to_warehouse(targets: Targets) -> object:
    path = _own(targets, "symlink")
    os.symlink(targets["warehouse"], path)
    return _read(path)


@probe()
def symbolic_link_through_proc(targets: Targets) -> object:
    """Links of /proc lead to files without walking their path."""
    pid = targets["foreign_pids"]["hub"]
    return any_of(
        {
            "root": lambda: _read(f"/proc/{pid}/root{targets['warehouse']}"),
            "cwd": lambda: os.listdir(f"/proc/{pid}/cwd/"),
        }
    )


@probe()
def change_own_snapshot(targets: Targets) -> object:
    """As the owner of the file one could give oneself the right."""
    path = targets["own_snapshot"]
    mode = stat.S_IMODE(os.stat(path).st_mode)
    with contextlib.suppress(PermissionError):
        os.chmod(path, mode | 0o200)
    try:
        return _open_for_writing(path)
    finally:
        with contextlib.suppress(PermissionError):
            os.chmod(path, mode)


@probe()
def add_to_own_snapshot_folder(targets: Targets) -> object:
    path = os.path.join(os.path.dirname(targets["own_snapshot"]), "more.duckdb")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)
    return "created a file"


@probe()
def replace_own_snapshot(targets: Targets) -> object:
    """By a link to something else, which the hub or the launcher would then follow."""
    folder = os.path.dirname(targets["own_snapshot"])
    aside = f"{folder}.{os.getpid()}"
    os.rename(folder, aside)
    os.rename(aside, folder)
    return "moved the folder away"


@probe()
def replace_own_temp_folder(targets: Targets) -> object:
    """The guard empties it; it must stay the folder that the hub made."""
    folder = os.path.join(targets["own_folder"], "tmp")
    aside = f"{folder}.{os.getpid()}"
    os.rename(folder, aside)
    os.rename(aside, folder)
    return "moved the folder away"


@probe()
def change_mode_of_hubs_file(targets: Targets) -> object:
    """Landlock has no rule for this: it is the user id or the mount view that denies it."""
    path = targets["hub_file"]
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode))
    return "changed"


@probe()
def change_mode_of_shared_snapshot(targets: Targets) -> object:
    """One file for all who may see the same: without the right to read it, none of them could work."""
    path = targets["own_snapshot"]
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode))
    return "changed"


@probe()
def change_times_of_hubs_file(targets: Targets) -> object:
    status = os.stat(targets["hub_file"])
    os.utime(targets["hub_file"], ns=(status.st_atime_ns, status.st_mtime_ns))
    return "changed"


@probe()
def change_owner_of_hubs_file(targets: Targets) -> object:
    status = os.stat(targets["hub_file"])
    os.chown(targets["hub_file"], -1, status.st_gid)
    return "changed"


@probe()
def attributes_of_hubs_file(targets: Targets) -> object:
    return any_of(
        {
            "user": lambda: os.setxattr(targets["hub_file"], "user.probe", b"1"),
            "acl": lambda: os.removexattr(targets["hub_file"], "user.probe"),
        }
    )


@probe()
def block_shared_snapshot_with_a_lease(targets: Targets) -> object:
    """Whoever opens the file then waits for most of a minute."""
    import fcntl

    # made anew, since a file that is open somewhere has no lease: this one belongs to the hub as snapshots do
    with open(targets["shared_file"], "rb") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return "held a lease"


@probe()
def watch_folders_of_others(targets: Targets) -> object:
    """inotify tells the names of what is opened and made, secret ones as well."""
    inotify = call(libc.inotify_init1(0))

    def watch(path: str, number: int) -> str:
        call(libc.inotify_add_watch(inotify, path.encode(), 0x120))
        if os.stat(path).st_ino != number:
            raise Denied("an empty folder of that name is all there is")
        return "watches it"

    return any_of(
        {path: lambda path=path, number=number: watch(path, number) for path, number in targets["folders"].items()}
    )


@probe()
def open_by_file_handle(targets: Targets) -> object:
    return call(libc.name_to_handle_at(-100, targets["warehouse"].encode(), *_handle(), 0)) or "got a handle"


def _handle() -> tuple[object, object]:
    handle = ctypes.create_string_buffer(8 + 128)
    ctypes.c_uint.from_buffer(handle).value = 128
    return handle, ctypes.byref(ctypes.c_int())


@probe()
def list_shared_memory(targets: Targets) -> object:
    """Of others: what multiprocessing makes there has names that nobody guesses."""
    if targets["shared_memory"] not in os.listdir("/dev/shm"):
        raise Denied("not those of others")
    return "found it"


@probe()
def open_shared_memory_of_others(targets: Targets) -> object:
    return _read(f"/dev/shm/{targets['shared_memory']}")


@probe("root")
def make_device_file(targets: Targets) -> object:
    path = _own(targets, "memory")
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 1))
    os.unlink(path)
    return "made /dev/mem"


@probe("root")
def read_disk_device(targets: Targets) -> object:
    return any_of({name: lambda name=name: _read(f"/dev/{name}") for name in targets["disks"]})


@probe("root")
def read_kernel_log_device(targets: Targets) -> object:
    return os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)) or "opened"


@probe()
def open_other_devices(targets: Targets) -> object:
    """Those that everybody may open outside: they reach deep into the kernel."""
    return any_of({path: lambda path=path: os.close(os.open(path, os.O_RDWR)) for path in targets["devices"]})


@probe("root")
def write_to_sys(targets: Targets) -> object:
    return _open_for_writing("/sys/kernel/mm/transparent_hugepage/enabled")


@probe("root")
def write_to_proc_sys(targets: Targets) -> object:
    return _open_for_writing("/proc/sys/kernel/core_pattern")


@probe("root")
def change_control_groups(targets: Targets) -> object:
    paths = [f"{folder}/{name}" for folder in targets["cgroups"] for name in ("cgroup.procs", "tasks")]
    return any_of({path: lambda path=path: _open_for_writing(path) for path in paths})


@probe("root")
def write_to_system_folders(targets: Targets) -> object:
    """Also the interpreter and the packages, which other people's servers run."""

    def create(folder: str) -> str:
        path = os.path.join(folder, f".probe-{os.getpid()}")
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(path)
        return "created a file"

    return any_of({folder: lambda folder=folder: create(folder) for folder in targets["system_folders"]})
