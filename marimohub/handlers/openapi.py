"""The API's own description, and answers in JSON for addresses below it that lead nowhere."""

from __future__ import annotations

import json
from typing import Any

from jupyterhub.utils import url_path_join

from marimohub import openapi
from marimohub.handlers.base import ApiHandler, RequestError, answers


class OpenApiHandler(ApiHandler):
    """Needs no sign-in: it says nothing about this hub but its version and address."""

    def initialize(self, pages: bool) -> None:
        self.pages = pages

    async def prepare(self) -> None:
        """Nobody is asked for: no user, no XSRF token."""

    def get(self) -> None:
        """The OpenAPI 3.1 document."""
        server = url_path_join(self.hub.base_url if self.pages else self.base_url, "api")
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(openapi.document(server, pages=self.pages)))


class UnknownHandler(ApiHandler):
    """Any other address below ours."""

    @answers
    async def get(self, *_path: str) -> None:
        raise RequestError(404, "not_found", "The API has no such address; see notebooks-openapi.json.")

    head = post = put = patch = delete = options = get


def handlers(*, pages: bool) -> list[tuple[Any, ...]]:
    """Our routes; they come after all others of the API."""
    return [
        (r"/api/notebooks-openapi\.json", OpenApiHandler, {"pages": pages}),
        (r"/api/(?:notebooks|drafts|notices|policy|people|profiles|servers?)(?:/.*)?", UnknownHandler),
    ]
