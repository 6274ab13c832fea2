"""`/api/v1/setup`: finds, tests and saves what the service needs for its first start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, Protocol

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from starlette.background import BackgroundTask

from app.api.models import ProblemDocument
from app.api.problems import MEDIA_TYPE, Problem, ProblemRaised
from app.settings_store import SettingsStore

router = APIRouter(prefix="/api/v1", tags=["set-up"])

Text = Annotated[str, Field(max_length=4_096)]
Kind = Literal["embedded", "influxdb1", "influxdb2", "influxdb3", "victoriametrics", "environment"]

NOT_HERE = Problem(
    status=409,
    code="cannot_restart",
    detail="The settings cannot be changed here: the demo has its own, and uvicorn's --reload and"
    " --workers keep a service from restarting itself.",
)


class FoundAddress(BaseModel):
    """An address at which Home Assistant answers."""

    url: str = Field(examples=["http://homeassistant.local:8123"])
    found_by: str = Field(examples=["name"])


class FoundDatabase(FoundAddress):
    """A database that runs as an app beside this one."""

    kind: str = Field(examples=["influxdb1"])


class Found(BaseModel):
    """What was found without asking anybody."""

    home_assistant: list[FoundAddress]
    database: list[FoundDatabase]


class OfferedKind(BaseModel):
    """A kind of database, and what to enter for it."""

    kind: Kind
    label: str
    fields: list[str]
    defaults: dict[str, str] = Field(description="Used for a field that is left empty")


class SetupState(BaseModel):
    """Whether the service waits for its set-up, and what can be chosen."""

    needed: bool = Field(description="Nothing is captured until Home Assistant is set")
    found: Found
    kinds: list[OfferedKind]


class HomeAssistantChoice(BaseModel):
    """Home Assistant's address and token."""

    model_config = ConfigDict(extra="forbid")

    url: Text
    token: SecretStr


class DatabaseChoice(BaseModel):
    """A database; fields that its kind does not have are ignored."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    url: Text | None = None
    database: Text | None = None
    username: Text | None = None
    password: SecretStr | None = None
    org: Text | None = None
    bucket: Text | None = None
    token: SecretStr | None = None

    def fields(self) -> Mapping[str, str | None]:
        """Return what was entered, secrets as text."""
        given = self.model_dump(exclude={"kind", "password", "token"})
        for name, secret in (("password", self.password), ("token", self.token)):
            given[name] = None if secret is None else secret.get_secret_value()
        return given


class SetupChoice(BaseModel):
    """What to save; null leaves it as it is."""

    model_config = ConfigDict(extra="forbid")

    home_assistant: HomeAssistantChoice | None = None
    database: DatabaseChoice | None = None


class Check(BaseModel):
    """One check, in the doctor's words."""

    name: str = Field(examples=["token"])
    status: Literal["ok", "warning", "failed", "not tried"]
    text: str = Field(examples=["Home Assistant accepts the token."])
    advice: str | None
    field: str | None = Field(description="The field that it is about")


class Tested(BaseModel):
    """The result of some checks."""

    ok: bool
    checks: list[Check]


class TestedHomeAssistant(Tested):
    """The result of Home Assistant's checks."""

    version: str | None = Field(examples=["2026.11.0"])
    entities: int | None


class SetupSaved(BaseModel):
    """The choice is stored, and the service restarts with it."""

    saved: Literal[True] = True
    api_key: str | None = Field(
        description="A new API_KEY, when without one this client would not be answered again"
    )


class FailedChecks(ProblemDocument):
    """Why nothing was saved."""

    checks: list[Check]


class Setup(Protocol):
    """The set-up."""

    async def state(self) -> SetupState:
        """Return what can be chosen."""
        ...

    async def check_home_assistant(self, choice: HomeAssistantChoice) -> TestedHomeAssistant:
        """Test Home Assistant."""
        ...

    async def check_database(self, choice: DatabaseChoice) -> Tested:
        """Test a database."""
        ...

    async def save(self, choice: SetupChoice, *, needs_key: bool) -> SetupSaved | Sequence[Check]:
        """Test what was chosen and save it, or return the checks that failed."""
        ...


async def setup_of(request: Request) -> Setup:
    """Return the set-up of the application."""
    setup: Setup = request.app.state.setup()
    return setup


async def store_of(request: Request) -> SettingsStore:
    """Return the settings of the application."""
    store: SettingsStore = request.app.state.store
    return store


SetupDep = Annotated[Setup, Depends(setup_of)]
StoreDep = Annotated[SettingsStore, Depends(store_of)]


def restarter(store: SettingsStore) -> BackgroundTask:
    """Return the task that restarts the service after the response.

    Raises:
        ProblemRaised: it cannot.
    """
    if store.restart is None:
        raise ProblemRaised(NOT_HERE)
    # A coroutine runs in the event loop, a function in a thread.
    return BackgroundTask(_restart, store.restart)


async def _restart(restart: Callable[[], None]) -> None:
    restart()


@router.get("/setup", summary="What can be set up")
async def setup_state(setup: SetupDep) -> SetupState:
    """Look for Home Assistant and for databases, for at most some seconds."""
    return await setup.state()


@router.post("/setup/home-assistant", summary="Test Home Assistant")
async def check_home_assistant(choice: HomeAssistantChoice, setup: SetupDep) -> TestedHomeAssistant:
    """Connect with this address and token; nothing is saved."""
    return await setup.check_home_assistant(choice)


@router.post("/setup/database", summary="Test a database")
async def check_database(choice: DatabaseChoice, setup: SetupDep) -> Tested:
    """Write a point to this database, read it back and delete it; nothing is saved."""
    return await setup.check_database(choice)


@router.put(
    "/setup",
    status_code=202,
    summary="Save the set-up",
    responses={
        202: {"model": SetupSaved},
        409: {"model": FailedChecks, "description": "A check failed; nothing is saved"},
    },
)
async def save(choice: SetupChoice, setup: SetupDep, store: StoreDep, request: Request) -> Response:
    """Test everything again, save it, and restart the service with it."""
    restart = restarter(store)
    result = await setup.save(choice, needs_key=request.scope.get("is_by_link", False))
    if isinstance(result, SetupSaved):
        return JSONResponse(result.model_dump(), status_code=202, background=restart)
    document = {**_FAILED.document(), "checks": [each.model_dump() for each in result]}
    return JSONResponse(document, status_code=409, media_type=MEDIA_TYPE)


_FAILED = Problem(
    status=409, code="check_failed", detail="A check failed, so nothing was saved; see `checks`."
)
