"""The dashboard at `/`, Swagger UI at `/docs`, and their files; no other server is used."""

from __future__ import annotations

import asyncio
import os
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.staticfiles import NotModifiedResponse
from starlette.types import Receive, Scope, Send

WEB = Path(__file__).parent.parent / "web"

_PIECE_BYTES = 65_536

router = APIRouter(include_in_schema=False)


class ClosedFile(FileResponse):
    """A file that is read and closed before it is sent, so a slow client holds no descriptor."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the signature of ASGI
        """Send the whole file in pieces; ranges are not supported."""
        stat = await asyncio.to_thread(os.stat, self.path)
        content = await asyncio.to_thread(_content, str(self.path), stat.st_mtime_ns, stat.st_size)
        self.set_stat_headers(stat)
        self.headers["content-length"] = str(len(content))
        self.headers["accept-ranges"] = "none"
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        if scope["method"] != "HEAD":
            for at in range(0, len(content), _PIECE_BYTES):
                piece = content[at : at + _PIECE_BYTES]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class ClosedFolder(StaticFiles):
    """A folder of such files."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Return the file, or 304 when it has not changed."""
        page = ClosedFile(full_path, status_code=status_code, stat_result=stat_result)
        if self.is_not_modified(page.headers, Headers(scope=scope)):
            return NotModifiedResponse(page.headers)
        return page


@lru_cache(maxsize=64)
def _content(path: str, _modified_ns: int, _size: int) -> bytes:
    return Path(path).read_bytes()


@router.get("/")
async def first_page() -> ClosedFile:
    """Return the dashboard; its modules are in `app/web`, `app.js` first."""
    return ClosedFile(WEB / "index.html")


@router.get("/docs")
async def docs() -> ClosedFile:
    """Return Swagger UI over `/openapi.json`."""
    return ClosedFile(WEB / "docs.html")


@router.get("/setup")
async def no_setup() -> RedirectResponse:
    """Lead to the dashboard, below whatever path the service is mounted at."""
    return RedirectResponse("./")


def mount_files(app: FastAPI) -> None:
    """Serve the files of the pages."""
    # Only the package's files are used, none of its code.
    swagger = ClosedFolder(packages=[("fastapi_swagger", "resources")])
    app.mount("/static/swagger", swagger, name="swagger")
    app.mount("/static", ClosedFolder(directory=WEB), name="static")
