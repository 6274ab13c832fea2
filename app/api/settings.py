"""`/api/v1/settings`: every setting, and changes to those that the environment does not set."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from app.api.models import ProblemDocument
from app.api.problems import Problem, ProblemRaised
from app.api.setup import StoreDep, restarter
from app.runtime.errors import SettingsError
from app.settings_store import Setting, SettingsStore, problems_by_name

router = APIRouter(prefix="/api/v1", tags=["set-up"])

_MOST_CHANGES = 200
_MOST_CHARACTERS = 16_384


class SettingState(BaseModel):
    """A setting, and where its value comes from."""

    name: str = Field(examples=["BATCH_SIZE"])
    group: str = Field(examples=["Batches"])
    help: str
    value: str | None = Field(description="Null for a secret, and while it is not set")
    default: str | None = Field(description="Null for a required setting")
    choices: list[str] | None
    is_secret: bool
    is_set: bool
    is_read_only: bool
    source: Literal["environment", "file", "default"]
    restarts: Literal["service"] = Field(description="What a change restarts")


class SettingsPage(BaseModel):
    """Every setting."""

    settings: list[SettingState]


class SettingsChange(BaseModel):
    """New values by name; null removes one, so that the default applies."""

    model_config = ConfigDict(extra="forbid")

    values: dict[str, Annotated[str, Field(max_length=_MOST_CHARACTERS)] | None] = Field(
        max_length=_MOST_CHANGES, examples=[{"BATCH_SIZE": "200"}]
    )


class SettingsSaved(BaseModel):
    """The change is stored."""

    restarts: bool = Field(description="False when nothing is different")


@router.get("/settings", summary="Every setting")
async def settings(store: StoreDep) -> SettingsPage:
    """Return every setting; values of secrets are never returned."""
    found = await asyncio.to_thread(store.settings)
    return SettingsPage(settings=[_state(setting) for setting in found])


@router.put(
    "/settings",
    status_code=202,
    summary="Change settings",
    responses={
        202: {"model": SettingsSaved},
        409: {"model": ProblemDocument, "description": "This service cannot restart itself"},
        503: {"model": ProblemDocument, "description": "DATA_DIR cannot be written"},
    },
)
async def change_settings(change: SettingsChange, store: StoreDep) -> Response:
    """Store new values in DATA_DIR/settings.json, and restart the service with them."""
    restart = restarter(store)
    is_different = await asyncio.to_thread(_save, store, change.values)
    return JSONResponse(
        SettingsSaved(restarts=is_different).model_dump(),
        status_code=202,
        background=restart if is_different else None,
    )


def _save(store: SettingsStore, values: dict[str, str | None]) -> bool:
    if refused := store.refusals(values):
        raise ProblemRaised(_invalid(list(refused.items())))
    try:
        return store.save(values)
    except SettingsError as exc:
        raise ProblemRaised(_invalid(problems_by_name(exc, values))) from exc
    except OSError as exc:
        why = exc.strerror or type(exc).__name__
        detail = f"settings.json in DATA_DIR cannot be written: {why}."
        raise ProblemRaised(Problem(status=503, code="storage_failed", detail=detail)) from exc


def _invalid(problems: Sequence[tuple[str, str]]) -> Problem:
    return Problem(
        status=422,
        code="invalid_request",
        detail="Some settings cannot be used, so nothing was saved; see `errors`.",
        errors=[{"location": name, "message": text} for name, text in problems],
    )


def _state(setting: Setting) -> SettingState:
    variable = setting.variable
    return SettingState(
        name=setting.name,
        group=variable.group,
        help=variable.description,
        value=setting.value,
        default=None if variable.is_secret else variable.default,
        choices=list(variable.choices) or None,
        is_secret=variable.is_secret,
        is_set=setting.source != "default",
        is_read_only=setting.is_read_only,
        source=setting.source,
        restarts="service",
    )
