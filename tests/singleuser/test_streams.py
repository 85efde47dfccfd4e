"""Open connections end with the session, and a held response goes out whole."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from marimohub.singleuser import streams
from marimohub.singleuser.streams import Held, Revocable, with_headers

pytestmark = pytest.mark.unit


async def never() -> Any:
    await asyncio.Event().wait()


@pytest.mark.parametrize("kind", ["websocket", "http"])
async def test_an_open_connection_ends_when_its_session_is_revoked(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RECHECK", 0.01)
    answers = [True, True, False]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def allowed() -> bool:
        return answers.pop(0)

    async with Revocable({"type": kind}, never, send, allowed) as stream:
        message = await asyncio.wait_for(stream.receive(), 2)
        assert message["type"] == f"{kind}.disconnect" and not answers
        with pytest.raises(OSError, match="revoked"):
            await stream.send({"type": "any"})
    assert [m["type"] for m in sent] == (["websocket.close"] if kind == "websocket" else [])


async def test_messages_pass_while_the_session_is_good() -> None:
    incoming = [{"type": "websocket.receive", "text": str(n)} for n in range(3)]

    async def receive() -> Any:
        return incoming.pop(0)

    async def allowed() -> bool:
        return True

    async with Revocable({"type": "websocket"}, receive, never, allowed) as stream:
        assert [(await stream.receive())["text"] for _ in range(3)] == ["0", "1", "2"]


async def test_a_changed_page_has_the_right_length_and_is_not_stored() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    held = Held(with_headers(send, "", "6"))
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", b"4"), (b"etag", b'"x"')]
    await held.send({"type": "http.response.start", "status": 200, "headers": headers})
    await held.send({"type": "http.response.body", "body": b"ab", "more_body": True})
    await held.send({"type": "http.response.body", "body": b"cd"})
    assert not sent and held.ok
    await held.release(lambda body: body + "ü".encode())
    result = dict(sent[0]["headers"])
    assert result[b"content-length"] == b"6" and result[b"cache-control"] == b"no-store" and b"etag" not in result
    assert sent[1]["body"] == "abcdü".encode()
