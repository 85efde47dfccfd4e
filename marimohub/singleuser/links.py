"""How the server and a kernel talk: inherited sockets instead of marimo's TCP port and named semaphores.

Nothing here has a name that another process could find, none needs a port, and the server never unpickles what a
kernel sends: code in a notebook can write what it likes to its end, and must not be able to run anything in the
server, which holds the person's token.

Messages to a kernel are pickled commands, messages to the server plain bytes (marimo's own JSON), both behind a length
of 8 bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import queue
import select
import socket
import struct
import threading
import time
from collections import deque
from typing import Any

_LENGTH = struct.Struct("!Q")
_CHUNK = 1 << 18
_MAX_MESSAGE = 1 << 30  # bytes that a kernel may have the server keep; marimo itself cuts outputs at 8 MB
_HELLO = b"+"
_NOW = socket.MSG_DONTWAIT if hasattr(socket, "MSG_DONTWAIT") else 0


class Outbox:
    """The server's end of one queue. Putting never blocks: what the kernel does not take yet waits here."""

    def __init__(self, maxsize: int = 0) -> None:
        # marimo bounds its queue of answers to input(); one that waits for its reader would stop the whole server
        del maxsize
        self._socket, self.kernel_end = socket.socketpair()
        self._lock = threading.Lock()
        self._waiting: deque[memoryview] = deque()
        self._writing = False
        self._closed = False

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Send. What a dead kernel would have got is dropped. Raises ValueError after close()."""
        del block, timeout
        data = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        with self._lock:
            if self._closed:
                raise ValueError("the queue is closed")
            self._waiting.append(memoryview(_LENGTH.pack(len(data)) + data))
            if self._writing:
                return
            if not self._write(_NOW):
                self._writing = True
                threading.Thread(target=self._write_the_rest, name="kernel-queue", daemon=True).start()

    def put_nowait(self, item: Any) -> None:
        self.put(item)

    def cancel_join_thread(self) -> None:
        """Nothing waits for the reader at the end anyway."""

    def close(self) -> None:
        with self._lock:
            self._closed = True
            with contextlib.suppress(OSError):  # ends a writer that waits for a kernel which does not read
                self._socket.shutdown(socket.SHUT_RDWR if self._writing else socket.SHUT_WR)
            if not self._writing:
                self._socket.close()
        self.kernel_end.close()

    def _write(self, flags: int) -> bool:
        """Whether everything is written, or can never be."""
        while self._waiting:
            try:
                sent = self._socket.send(self._waiting[0], flags | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError:
                self._waiting.clear()
                return True
            self._waiting[0] = self._waiting[0][sent:]
            if not self._waiting[0]:
                self._waiting.popleft()
        return True

    def _write_the_rest(self) -> None:
        writable = select.poll()
        writable.register(self._socket, select.POLLOUT)
        while True:
            writable.poll()
            with self._lock:
                if self._closed or self._write(_NOW):
                    self._writing = False
                    if self._closed:
                        self._socket.close()
                    return


class Inbox:
    """The kernel's end of an Outbox. What the kernel puts into it itself is read before what comes from the server.

    After the server has closed its end, nothing more comes: a kernel ends by a signal, and would stumble over its own
    clean-up if it began to end by itself at the same moment.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = bytearray()
        self._local: deque[Any] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._reading = threading.Lock()
        self._ended = False

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        del block, timeout
        self._local.append(item)
        os.eventfd_write(self._wake, 1)

    def put_nowait(self, item: Any) -> None:
        self.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The next item. Raises queue.Empty."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._reading:
            while True:
                if self._local:
                    return self._local.popleft()
                message = _take(self._buffer)
                if message is not None:
                    return pickle.loads(message)  # noqa: S301 - the server is who started this process
                self._wait(block, deadline)

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def empty(self) -> bool:
        with self._reading:
            with contextlib.suppress(queue.Empty):
                self._wait(block=False, deadline=None)
            return not self._local and not _complete(self._buffer)

    def _wait(self, block: bool, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if not self._ended:
            poll.register(self._socket, select.POLLIN)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = dict(poll.poll(left if block else 0))
        if not ready:
            raise queue.Empty
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        if self._socket.fileno() in ready:
            try:
                data = self._socket.recv(_CHUNK, _NOW)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._ended = not data
            self._buffer += data


class KernelLink:
    """The kernel's end of the connection that carries its outputs."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.sendall(_HELLO)

    def send(self, message: bytes) -> None:
        """Send one message. The caller holds a lock: threads of a kernel share this."""
        self._socket.sendall(_LENGTH.pack(len(message)) + message)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


class ServerLink:
    """The server's end: like multiprocessing's Connection, but a message that has come in part never blocks."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = bytearray()
        self._ended = False

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether recv() has something to give: a message, or the end."""
        del timeout
        while not _complete(self._buffer) and not self._ended:
            try:
                data = self._socket.recv(_CHUNK, _NOW)
            except BlockingIOError:
                return False
            except OSError:
                data = b""
            self._buffer += data
            if _announced(self._buffer) > _MAX_MESSAGE:
                self._buffer.clear()
                data = b""
            self._ended = not data
        if self._ended:
            self._stop_watching()
        return True

    def recv(self) -> bytes:
        """The next message. Raises EOFError at the end, BlockingIOError if poll() would have said no."""
        if not self.poll():
            raise BlockingIOError
        message = _take(self._buffer)
        if message is None:
            raise EOFError
        return message

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def close(self) -> None:
        self._socket.close()

    def _stop_watching(self) -> None:
        # marimo closes a dead kernel's session within a second; until then the loop would turn without a pause,
        # because a connection that has ended counts as readable
        with contextlib.suppress(RuntimeError, ValueError, OSError):
            asyncio.get_running_loop().remove_reader(self.fileno())


class Listener:
    """Stands where marimo makes `multiprocessing.connection.Listener`: its `address` is the kernel's end itself."""

    def __init__(self, address: Any = None, family: str | None = None) -> None:
        del address, family
        self._socket, end = socket.socketpair()
        self.address = KernelEnd(end)

    def accept(self) -> ServerLink:
        """Wait for the kernel to be there. Raises EOFError if it died before."""
        if self._socket.recv(1) != _HELLO:
            raise EOFError("the kernel ended before it connected")
        return ServerLink(self._socket)

    def close(self) -> None:
        """Ends a waiting accept(), too."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class KernelEnd:
    """A socket on its way into a kernel."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end


def connect(address: KernelEnd) -> KernelLink:
    """Stands where marimo's kernel calls `multiprocessing.connection.Client`."""
    return KernelLink(address.socket)


def _announced(buffer: bytearray) -> int:
    """The length of the first message, 0 if that is not known yet."""
    return int(_LENGTH.unpack_from(buffer)[0]) if len(buffer) >= _LENGTH.size else 0


def _complete(buffer: bytearray) -> bool:
    return len(buffer) >= _LENGTH.size + _announced(buffer)


def _take(buffer: bytearray) -> bytes | None:
    """Remove the first message from the buffer and return it, None if it is not whole."""
    if not _complete(buffer):
        return None
    end = _LENGTH.size + _announced(buffer)
    with memoryview(buffer) as view:
        message = bytes(view[_LENGTH.size : end])
    del buffer[:end]
    return message
