"""The pages for people: `/`, `/docs` and their files; everything comes from this machine."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

WEB = Path(__file__).parent.parent / "web"

router = APIRouter(include_in_schema=False)


@router.get("/")
async def first_page() -> FileResponse:
    """Return the dashboard; its modules are in `app/web`, `app.js` first."""
    return FileResponse(WEB / "index.html")


@router.get("/docs")
async def docs() -> FileResponse:
    """Return Swagger UI over `/openapi.json`."""
    return FileResponse(WEB / "docs.html")


def mount_files(app: FastAPI) -> None:
    """Serve what the pages load."""
    # The package only brings Swagger UI's own files; none of its code is imported.
    swagger = StaticFiles(packages=[("fastapi_swagger", "resources")])
    app.mount("/static/swagger", swagger, name="swagger")
    app.mount("/static", StaticFiles(directory=WEB), name="static")
