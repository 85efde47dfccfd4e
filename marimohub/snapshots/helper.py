"""Runs `python -m marimohub.snapshots.worker` for the hub: slow work outside the event loop, in its own process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from marimohub.snapshots.errors import HelperFailed, by_name

LINE_LIMIT = 256 * 1024 * 1024  # bytes; a catalogue of many thousands of tables is one line


async def run(
    task: str, spec: dict[str, Any], *, timeout: float, progress: Callable[[int], None] = lambda _done: None
) -> dict[str, Any]:
    """The result of one task.

    Args:
        spec: what the task needs; see the functions in mask_process, build_process, describe_process and source.
        timeout: seconds after which the process is ended.
        progress: told what the task says of its progress.

    Raises:
        SnapshotError: what the task raised, or HelperFailed if it ended without a word.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "marimohub.snapshots.worker", task,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        limit=LINE_LIMIT,
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    complaint = asyncio.create_task(process.stderr.read())
    try:
        async with asyncio.timeout(timeout):
            process.stdin.write(json.dumps(spec).encode() + b"\n")
            result = await _listen(process.stdout, progress)
            if result is not None:
                return result
            status = await process.wait()
            raise HelperFailed(_ended(status, await complaint))
    except TimeoutError:
        raise HelperFailed(
            f"Making a snapshot took longer than {timeout:g} s and was stopped. "
            "Ask an administrator to raise the snapshot timeouts, or to look at the disks of the hub."
        ) from None
    except (BrokenPipeError, ConnectionResetError):
        raise HelperFailed(_ended(await process.wait(), await complaint)) from None
    finally:
        # its stdin stays open until here: the helper takes the end of it for the end of whoever asked
        if process.returncode is None:
            process.kill()
            await process.wait()
        complaint.cancel()


async def _listen(output: asyncio.StreamReader, progress: Callable[[int], None]) -> dict[str, Any] | None:
    while line := await output.readline():
        try:
            said = json.loads(line)
        except ValueError:
            return None
        if "progress" in said:
            progress(said["progress"])
        elif "error" in said:
            raise by_name(said["error"]["type"], said["error"]["message"])
        elif "result" in said:
            found: dict[str, Any] = said["result"]
            return found
    return None


def _ended(status: int, complaint: bytes) -> str:
    last = complaint.decode(errors="replace").strip().rsplit("\n", 1)[-1]
    why = f"signal {-status}" if status < 0 else f"status {status}"
    return f"Making a snapshot was interrupted ({why}{': ' + last if last else ''}). Try again."
