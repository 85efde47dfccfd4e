"""From a fork of the guard to a confined server: what happens in the new process, in the order that makes it safe."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from marimohub.spawners import cgroups, processes, sandbox
from marimohub.spawners.job import Job
from marimohub.spawners.limits import apply_rlimits, limit_tasks

_TMP = "/tmp"  # noqa: S108 - the person's own
_MAX_SECRETS_BYTES = 65536
_RESTORED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class Handles:
    """File descriptors that a server gets; `told` takes the sentence if it cannot start, and is closed if it can."""

    listener: int
    secrets: int
    guard: int
    told: int


class CannotBecome(Exception):
    """The process cannot be made into the server; the text is a sentence."""


def become(job: Job, handles: Handles, guard_pid: int) -> NoReturn:
    """Turn this process, a fresh fork of the guard, into the server. Never returns."""
    status = 1
    try:
        try:
            _restore_signals()
            _close_others(handles)
            _prepare(job, guard_pid)
            if job.argv is not None:
                _execute(job, handles)
        except BaseException as error:
            _refuse(handles.told, error)
        else:
            os.close(handles.told)
            status = _serve(handles)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


def _refuse(told: int, error: BaseException) -> None:
    """The sentence goes to the hub, the details to the log."""
    traceback.print_exc()
    known = isinstance(error, CannotBecome | sandbox.SandboxError)
    sentence = str(error) if known else f"The server could not be prepared: {type(error).__name__}: {error}."
    with contextlib.suppress(OSError):
        os.write(told, sentence.encode()[:4096])


def _restore_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in _RESTORED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _close_others(handles: Handles) -> None:
    """Keep the descriptors that a server needs, and not one more."""
    keep = sorted({handles.listener, handles.secrets, handles.guard, handles.told})
    for low, high in zip([2, *keep], [*keep, os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, high)


def _prepare(job: Job, guard_pid: int) -> None:
    """Limits, view, identity, environment, confinement. Each step takes away what the next does not need."""
    os.setsid()
    root = os.geteuid() == 0
    if job.cgroup is not None:
        # as the group's file takes it from whoever may write there, also where no controller is
        (Path(job.cgroup) / "cgroup.procs").write_text("0")
    apply_rlimits(job.limits, cgroup=job.cgroup, own_uid=job.identity is not None)
    private = job.sandbox is not None and sandbox.enter_view(job.sandbox, job.temp)
    short = private and _is_tmp(job.temp)
    if job.identity is not None:
        os.setgroups(job.identity.groups)
        os.setresgid(job.identity.gid, job.identity.gid, job.identity.gid)
        os.setresuid(job.identity.uid, job.identity.uid, job.identity.uid)
    elif root and job.sandbox is not None:
        raise CannotBecome("A confined server cannot run as root: no user id was given for it.")
    processes.die_with_parent()
    if os.getppid() != guard_pid:
        raise CannotBecome("The guard ended while the server was starting.")
    os.environ.clear()
    os.environ.update(job.env)
    if short:
        # paths of Unix sockets, which multiprocessing makes there, may have no more than 107 bytes
        os.environ["TMPDIR"] = _TMP
    time.tzset()
    try:
        os.chdir(job.folder)
    except OSError as error:
        raise CannotBecome(f"The folder {job.folder} cannot be entered: {error.strerror}.") from error
    if job.sandbox is not None:
        # where cores are chosen for a server, because no control group limits it, it may not choose others
        free = job.limits.cpu is None or "cpu" in cgroups.active(job.cgroup)
        sandbox.confine(job.sandbox, own_user=job.identity is not None, choose_cores=free, private=private)
    if job.identity is None:
        limit_tasks(job.limits)


def _is_tmp(folder: str) -> bool:
    """Whether a person's temp folder is what they see as /tmp."""
    try:
        return os.path.samefile(folder, _TMP)
    except OSError:
        return False


def _serve(handles: Handles) -> int:
    """Run the launcher that the spawn server has loaded; its exit status."""
    from marimohub.singleuser import launcher

    processes.set_name("marimohub-serv")
    sys.argv = ["marimohub.singleuser"]
    for name, descriptor in (("LISTEN", handles.listener), ("SECRETS", handles.secrets), ("GUARD", handles.guard)):
        os.environ[f"MARIMOHUB_{name}_FD"] = str(descriptor)
    gc.enable()
    try:
        return launcher.main()
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        print(ending.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1


def _execute(job: Job, handles: Handles) -> NoReturn:
    """Run another program, which finds its secrets in the environment, as JupyterHub does it."""
    assert job.argv
    text = b""
    while piece := os.read(handles.secrets, _MAX_SECRETS_BYTES):
        text += piece
    os.environ.update(json.loads(text))
    for descriptor in (handles.listener, handles.secrets, handles.guard):
        os.close(descriptor)
    # Python ignores these; a program that was not written in it expects the system's defaults
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).umask(0o077)
    try:
        os.execvpe(job.argv[0], list(job.argv), os.environ)  # noqa: S606 - the configured command
    except OSError as error:
        raise CannotBecome(f"The command {job.argv[0]} cannot be run: {error.strerror}.") from error
