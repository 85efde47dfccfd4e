"""What the notebook's page can ask about its snapshot, and who else cannot."""

from __future__ import annotations

import json

from tests.singleuser.conftest import Browser
from tests.singleuser.server import Server

ABOUT = {"created": "2026-11-21T08:00:00Z", "checked": "2026-11-21T09:00:00Z", "tables": []}


def headers(page: str, server: Server) -> dict[str, str]:
    return {
        "Marimo-Server-Token": server.server_token(page),
        "Sec-Fetch-Mode": "cors",
        "Sec-Fetch-Dest": "empty",
        "Sec-Fetch-Site": "same-origin",
    }


async def page_of(alice: Browser, name: str) -> str:
    await alice.open(name)
    _, page = await alice.get(f"?file={name}.py")
    return page


async def test_the_page_learns_how_old_the_snapshot_is(server: Server, alice: Browser, name: str) -> None:
    page = await page_of(alice, name)
    assert 'data-marimohub="snapshot"' in page
    about = server.root / "warehouse.json"
    about.unlink(missing_ok=True)
    status, body = await alice.get("marimohub/snapshot", **headers(page, server))
    assert (status, json.loads(body)) == (200, {"snapshot": None})
    about.write_text(json.dumps(ABOUT))
    status, body = await alice.get("marimohub/snapshot", **headers(page, server))
    assert status == 200
    assert json.loads(body)["snapshot"] == {"created": ABOUT["created"], "checked": ABOUT["checked"]}
    about.write_text("[]")
    status, body = await alice.get("marimohub/snapshot", **headers(page, server))
    assert (status, json.loads(body)) == (200, {"snapshot": None})


async def test_refresh_asks_the_hub_and_tells_what_came_of_it(server: Server, alice: Browser, name: str) -> None:
    page = await page_of(alice, name)
    before = server.hub.refreshed
    url = server.url + "marimohub/snapshot/refresh"
    async with alice.http.post(url, headers=headers(page, server)) as answer:
        assert answer.status == 200
        assert (await answer.json())["changed"] is True
    assert server.hub.refreshed == before + 1
    server.hub.refresh_status = 409
    server.hub.refresh_answer = {"error": {"code": "access_changed", "message": "Open the notebook again."}}
    try:
        async with alice.http.post(url, headers=headers(page, server)) as answer:
            assert answer.status == 409
            assert (await answer.json())["detail"] == "Open the notebook again."
    finally:
        server.hub.refresh_status, server.hub.refresh_answer = 200, {"snapshot": {}, "changed": True}


async def test_another_page_can_neither_ask_nor_refresh(server: Server, alice: Browser, name: str) -> None:
    page = await page_of(alice, name)
    before = server.hub.refreshed
    without = {key: value for key, value in headers(page, server).items() if key != "Marimo-Server-Token"}
    assert (await alice.get("marimohub/snapshot", **without))[0] == 403
    async with alice.http.post(server.url + "marimohub/snapshot/refresh", headers=without) as answer:
        assert answer.status == 403
    foreign = {**headers(page, server), "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    async with alice.http.post(server.url + "marimohub/snapshot/refresh", headers=foreign) as answer:
        assert answer.status == 403
    assert server.hub.refreshed == before
