"""A stand-in for the hub: the domain functions behind a Unix socket, in one process that can be killed and restarted.

It does what the hub does with locks and texts, by the same functions, in the same worker threads, after the same
reconciliation, without JupyterHub's cost per request. A request is one JSON object per line, and so is its answer.

Run as `python -m tests.hammer_server URL ROOT SOCKET TTL`. That process serves nobody: for each line on its standard
input it forks one that does, tells its id and repairs, and waits for its end. So a restart does not cost the imports.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from marimohub import locks, revoking
from marimohub.database import Database
from marimohub.files import text_hash
from marimohub.notebook_errors import NotebookError, SaveRefused
from marimohub.notebooks import NotebookStore

WORKSPACE = 1


class Server:
    """One method per operation; each returns the answer's fields."""

    def __init__(self, database: Database, root: Path, ttl: float) -> None:
        self.database = database
        self.store = NotebookStore(database, root)
        self.ttl = ttl

    async def acquire(self, user: str, name: str) -> dict[str, Any]:
        state = await self.database.run(self._acquire, user, name)
        return {"fence": state.fence}

    def _acquire(self, user: str, name: str) -> locks.LockState:
        now = time.time()
        self.store.get(WORKSPACE, name, now=now)
        with self.database.transaction() as session:
            return locks.acquire(session, WORKSPACE, name, user, now=now, ttl=self.ttl)

    async def heartbeat(self, user: str, name: str, fence: int) -> dict[str, Any]:
        state = await self.database.write(locks.heartbeat, WORKSPACE, name, user, fence, now=time.time(), ttl=self.ttl)
        return {"fence": state.fence}

    async def release(self, user: str, name: str) -> dict[str, Any]:
        await self.database.write(locks.release, WORKSPACE, name, user, now=time.time())
        return {}

    async def revoke(self, user: str, name: str) -> dict[str, Any]:
        def revoke(session: Session) -> None:
            revoking.force_unlock(session, WORKSPACE, name, actor=user, now=time.time())

        await self.database.write(revoke)
        return {}

    async def read(self, user: str, name: str) -> dict[str, Any]:
        found = await self.database.run(self.store.read, WORKSPACE, name, now=time.time())
        assert text_hash(found.text) == found.hash
        return {"hash": found.hash}

    async def save(self, user: str, name: str, text: str, fence: int, base: str) -> dict[str, Any]:
        saved = await self.database.run(
            self.store.save, WORKSPACE, name, text, user=user, fence=fence, base=base, now=time.time()
        )
        return {"hash": saved.hash}

    async def create(self, user: str, name: str, text: str) -> dict[str, Any]:
        await self.database.run(self.store.create, WORKSPACE, name, text, author=user, email=None, now=time.time())
        return {"hash": text_hash(text)}

    async def delete(self, user: str, name: str) -> dict[str, Any]:
        await self.database.run(self.store.delete, WORKSPACE, name, user=user, admin=True, now=time.time())
        return {}

    async def list(self, user: str) -> dict[str, Any]:
        return {"count": len(await self.database.run(self.store.list_all, WORKSPACE, now=time.time()))}

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request.pop("op")
        try:
            found: dict[str, Any] = await getattr(self, operation)(**request)
            return found
        except SaveRefused as error:
            return {"error": error.code, "draft": error.draft}
        except (NotebookError, locks.LockError) as error:
            return {"error": error.code}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            answer = await self.answer(json.loads(line))
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()


async def serve(url: str, root: str, socket: str, ttl: str) -> None:
    database = Database(url)
    database.prepare()
    server = Server(database, Path(root), float(ttl))
    repairs = server.store.reconcile()
    Path(socket).unlink(missing_ok=True)
    async with await asyncio.start_unix_server(server.serve, socket, limit=1 << 20):
        print(json.dumps({"pid": os.getpid(), "repairs": repairs}), flush=True)
        await asyncio.Event().wait()


def main(arguments: list[str]) -> None:
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(serve(*arguments))
            finally:
                # never back into the parent's loop
                traceback.print_exc()
                os._exit(1)
        os.waitpid(child, 0)
        print(json.dumps({"ended": child}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
