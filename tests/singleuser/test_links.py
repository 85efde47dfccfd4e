"""The sockets between the server and a kernel: they never stop the server, and say when the other side is gone."""

from __future__ import annotations

import queue
import socket
import struct
import threading

import pytest

from marimohub.singleuser.links import Inbox, KernelLink, Listener, Outbox, connect

pytestmark = pytest.mark.unit


def pair() -> tuple[Outbox, Inbox]:
    outbox = Outbox()
    return outbox, Inbox(outbox.kernel_end.dup())


def test_a_queue_keeps_the_order_and_never_waits_for_its_reader() -> None:
    outbox, inbox = pair()
    big = b"x" * 5_000_000  # more than a socket holds
    for number in range(4):
        outbox.put((number, big))
    assert [inbox.get(timeout=5)[0] for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(queue.Empty):
        inbox.get_nowait()
    assert inbox.empty()


def test_what_the_kernel_tells_itself_wakes_a_waiting_reader() -> None:
    _, inbox = pair()
    threading.Timer(0.1, lambda: inbox.put_nowait("own")).start()
    assert inbox.get(timeout=5) == "own"


def test_a_closed_queue_gives_what_is_left_and_then_nothing_more() -> None:
    outbox, inbox = pair()
    outbox.put("last")
    outbox.close()
    assert inbox.get() == "last"
    with pytest.raises(queue.Empty):
        inbox.get(timeout=0.2)
    inbox.put("own")
    assert inbox.get() == "own"
    with pytest.raises(ValueError, match="closed"):
        outbox.put("more")


def test_a_kernel_that_does_not_read_holds_up_nobody() -> None:
    outbox, inbox = pair()
    outbox.put(b"x" * 5_000_000)
    outbox.close()
    with pytest.raises(queue.Empty):  # the rest of the message was thrown away
        inbox.get(timeout=0.2)


def test_putting_to_a_dead_kernel_is_no_error() -> None:
    outbox = Outbox()
    outbox.kernel_end.close()
    for _ in range(3):
        outbox.put("nobody reads this")


def test_a_message_in_parts_is_taken_when_it_is_whole() -> None:
    listener = Listener()
    kernel = connect(listener.address)
    server = listener.accept()
    raw = socket.socket(fileno=socket.dup(kernel.fileno()))
    assert not server.poll()
    raw.sendall(struct.pack("!Q", 5) + b"he")
    assert not server.poll()
    raw.sendall(b"llo")
    kernel.send(b"world")
    assert server.poll() and server.recv() == b"hello"
    assert server.poll() and server.recv() == b"world"
    with pytest.raises(BlockingIOError):
        server.recv()
    raw.close()
    kernel.send(b"bye")
    kernel.close()
    assert server.recv() == b"bye"
    assert server.poll()
    with pytest.raises(EOFError):
        server.recv()


def test_a_kernel_that_dies_before_it_connects_does_not_stop_the_server() -> None:
    listener = Listener()
    listener.address.socket.close()
    with pytest.raises(EOFError):
        listener.accept()


def test_a_length_that_nothing_can_have_ends_the_link() -> None:
    """Code in a notebook can write what it likes to its end."""
    listener = Listener()
    kernel: KernelLink = connect(listener.address)
    server = listener.accept()
    raw = socket.socket(fileno=socket.dup(kernel.fileno()))
    raw.sendall(struct.pack("!Q", 1 << 62))
    with pytest.raises(EOFError):
        server.recv()
    assert server.poll()
    raw.close()
