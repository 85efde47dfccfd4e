"""The paths that every notebook server needs: Python with its packages, the system's libraries, a few devices."""

from __future__ import annotations

import functools
import glob
import inspect
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROBE_TIMEOUT = 60.0  # seconds; the first start on a cold disk takes a while

_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
# Not /etc as a whole: where there is only one user id, the hub's own secrets may be among what it can read there.
_SETTINGS = """
    ImageMagick-* OpenCL R alternatives bash.bashrc bash_completion bash_completion.d bashrc ca-certificates
    ca-certificates.conf crypto-policies debian_version default/locale fonts gai.conf gitconfig group gtk-3.0 host.conf
    hosts inputrc java-* ld.so.cache ld.so.conf ld.so.conf.d locale.alias locale.conf localtime lsb-release magic
    magic.mime mailcap matplotlibrc mime.types nanorc networks nsswitch.conf os-release papersize passwd perl pip.conf
    pki/ca-trust pki/tls/cert.pem pki/tls/certs pki/tls/openssl.cnf profile profile.d protocols python3*
    redhat-release resolv.conf rpc services shells ssh/ssh_config ssh/ssh_config.d ssh/ssh_known_hosts ssl/cert.pem
    ssl/certs ssl/openssl.cnf static system-release terminfo texmf timezone uv vim vimrc wgetrc xattr.conf xdg zoneinfo
"""
_CACHES = ("/var/cache/fontconfig", "/var/lib/texmf")
# duckdb aborts without both, psutil and what counts cores need them
_KERNEL = ("/proc", "/sys")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/pts")
_SHARED_MEMORY = ("/dev/shm",)  # noqa: S108 - Python's multiprocessing keeps its locks there

_PACKAGES = ("marimohub", "marimohub.spawners")


def _layout(packages: tuple[str, ...]) -> dict[str, list[str]]:
    """Where the Python that runs this has its parts. Its source is also run by other interpreters."""
    import importlib.util
    import os
    import sys

    code = []
    for name in packages:
        try:
            spec = importlib.util.find_spec(name)
        except ImportError:
            continue
        code += list(spec.submodule_search_locations or ()) if spec else []
    roots = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    return {"roots": roots, "path": list(sys.path), "code": code, "files": [sys.executable, os.__file__]}


class NoInterpreter(Exception):
    """An interpreter did not say where its parts are. The text is a sentence."""


@dataclass(frozen=True)
class Paths:
    """As in `Sandbox`, of which these are the parts that are the same for everybody."""

    read: tuple[str, ...]
    write: tuple[str, ...]
    devices: tuple[str, ...]
    shared_memory: tuple[str, ...]


def standard_paths(
    interpreter: str | Path, extra_read: Iterable[str | Path] = (), extra_write: Iterable[str | Path] = ()
) -> Paths:
    """What a server with this interpreter needs to reach, without anything of the person's.

    Python's own folders: its prefix and, of `sys.path`, those named site-packages or dist-packages; the folders of the
    marimohub package, wherever it was installed from. Not what else is on `sys.path` (PYTHONPATH, packages installed
    in place): name it in `extra_read`. Blocks while another interpreter than this is asked for the first time.

    Args:
        extra_read: files and folders, absolute; what does not exist is left out.
        extra_write: the same; device files, such as /dev/nvidia0, may also be controlled.
    Raises:
        NoInterpreter: it cannot be asked.
        ValueError: an extra path is not absolute; the text is a sentence.
    """
    for path in (*extra_read, *extra_write):
        if not os.path.isabs(path):
            raise ValueError(f"{path} is not an absolute path.")
    read = [*_PROGRAMS, *_settings(), *_resolver(), *_CACHES, *_KERNEL]
    read += [*_python(str(interpreter)), *map(str, extra_read)]
    write: list[str] = []
    devices = list(_DEVICES)
    for path in map(str, extra_write):
        (devices if _is_device(path) else write).append(path)
    return Paths(_existing(read), _existing(write), _existing(devices), _existing(_SHARED_MEMORY))


def exposing(paths: Iterable[str], secret: str | Path) -> str | None:
    """Which of the paths a secret file or folder is in (or is); None if it is in none of them.

    For the start of the hub: its data folder, database and configuration belong elsewhere than what servers read.
    """
    hidden = os.path.realpath(secret)
    for path in paths:
        real = os.path.realpath(path)
        if os.path.commonpath([real, hidden]) == real:
            return path
    return None


def _existing(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path for path in paths if os.path.exists(path)))


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


def _settings() -> list[str]:
    return [path for name in _SETTINGS.split() for path in sorted(glob.glob(f"/etc/{name}"))]


def _resolver() -> list[str]:
    """systemd-resolved and others write a new resolv.conf each time, and a rule holds for one file: take its folder."""
    folder = os.path.dirname(os.path.realpath("/etc/resolv.conf"))
    return [folder] if folder.startswith("/run/") else []


def _python(interpreter: str) -> list[str]:
    own = os.path.abspath(interpreter) == os.path.abspath(sys.executable)
    found = _layout(_PACKAGES) if own else json.loads(_ask(interpreter))
    # "/usr" is read anyway; a Python whose prefix is "/" has its parts in /lib and /bin
    roots = [root for root in map(os.path.abspath, found["roots"]) if root != "/"]
    paths = roots + [path for path in found["path"] if os.path.basename(path) in ("site-packages", "dist-packages")]
    paths += found["code"]
    for file in (interpreter, *found["files"]):
        real = os.path.realpath(file)
        if not any(os.path.commonpath([real, os.path.realpath(path)]) == os.path.realpath(path) for path in paths):
            paths.append(real)
    return paths


def run_probe(interpreter: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run some lines of Python in an interpreter, with nothing of the hub's environment. Blocks.

    Raises:
        OSError, subprocess.TimeoutExpired
    """
    return subprocess.run(
        [interpreter, "-I", "-c", program],
        cwd="/",
        env={"PATH": os.defpath, "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PROBE_TIMEOUT,
    )


@functools.cache
def _ask(interpreter: str) -> str:
    source = inspect.getsource(_layout)
    program = f"from __future__ import annotations\nimport json\n{source}\nprint(json.dumps(_layout({_PACKAGES!r})))"
    try:
        done = run_probe(interpreter, program)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoInterpreter(f"{interpreter} cannot be asked where its packages are: {error}.") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise NoInterpreter(f"{interpreter} cannot be asked where its packages are: {said[:300]}.")
    return done.stdout
