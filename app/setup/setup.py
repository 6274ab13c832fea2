"""The set-up: tests a choice with the doctor's checks, then saves it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from app.api.setup import (
    Check,
    DatabaseChoice,
    Found,
    FoundAddress,
    FoundDatabase,
    HomeAssistantChoice,
    OfferedKind,
    SetupChoice,
    SetupSaved,
    SetupState,
    Tested,
    TestedHomeAssistant,
)
from app.doctor import checks, database, home_assistant
from app.doctor.findings import Finding, without_secrets
from app.doctor.groups import bounded, secrets_of
from app.runtime.errors import SettingsError
from app.runtime.text import one_line
from app.settings import Settings
from app.settings_store import SettingsStore, problems_by_name
from app.setup import finding
from app.setup.choices import (
    DATABASE_KINDS,
    DATABASE_SETTINGS,
    ENVIRONMENT,
    FIELDS,
    FIELDS_OF_CHECKS,
    database_values,
)

_WITHIN_S = 25.0

Changes = Mapping[str, str | None]


def _now() -> datetime:
    return datetime.now(UTC)


class BrowserSetup:
    """Implements `app.api.setup.Setup`; one request at a time tests."""

    def __init__(
        self,
        store: SettingsStore,
        *,
        supervisor_token: str | None = None,
        within_s: float = _WITHIN_S,
    ) -> None:
        """`within_s` limits each group of checks."""
        self._store = store
        self._within_s = within_s
        self._supervisor_token = supervisor_token
        self._testing = asyncio.Lock()

    async def state(self) -> SetupState:
        """Return what can be chosen."""
        is_needed = self._store.is_setup
        houses, databases = await asyncio.gather(
            finding.find_home_assistant(finding.HOME_ASSISTANTS if is_needed else ()),
            finding.find_databases(self._supervisor_token),
        )
        return SetupState(
            needed=is_needed,
            found=Found(
                home_assistant=[
                    FoundAddress(url=each.url, found_by=each.found_by) for each in houses
                ],
                database=[
                    FoundDatabase(url=each.url, found_by=each.found_by, kind=each.kind or "")
                    for each in databases
                ],
            ),
            kinds=await asyncio.to_thread(self._kinds),
        )

    def _kinds(self) -> list[OfferedKind]:
        settings = {setting.name: setting for setting in self._store.settings()}
        if any(settings[name].source == "environment" for name in DATABASE_SETTINGS):
            return [
                OfferedKind(
                    kind=ENVIRONMENT, label="Set in the environment", fields=[], defaults={}
                )
            ]
        return [
            OfferedKind(
                kind=each.kind,
                label=each.label,
                fields=list(each.settings),
                defaults={
                    name: default
                    for name, setting in each.settings.items()
                    if (default := settings[setting].variable.default)
                },
            )
            for each in DATABASE_KINDS.values()
        ]

    async def check_home_assistant(self, choice: HomeAssistantChoice) -> TestedHomeAssistant:
        """Test Home Assistant."""
        found = await self._test_home_assistant(_home_assistant_values(choice))
        readings = {name: value for each in found for name, value in each.readings.items()}
        version, entities = readings.get("ha_version"), readings.get("entities")
        return TestedHomeAssistant(
            ok=not _failures(found),
            checks=_checks(found),
            version=version if isinstance(version, str) else None,
            entities=entities if isinstance(entities, int) else None,
        )

    async def check_database(self, choice: DatabaseChoice) -> Tested:
        """Test a database."""
        found = await self._test_database(database_values(choice.kind, choice.fields()))
        return Tested(ok=not _failures(found), checks=_checks(found))

    async def save(self, choice: SetupChoice, *, needs_key: bool) -> SetupSaved | Sequence[Check]:
        """Test what was chosen and save it, or return the checks that failed."""
        changes: dict[str, str | None] = {}
        found: list[Finding] = []
        if choice.home_assistant is not None:
            changes |= _home_assistant_values(choice.home_assistant)
            found += await self._test_home_assistant(changes)
        if choice.database is not None:
            of_database = database_values(choice.database.kind, choice.database.fields())
            found += await self._test_database({**changes, **of_database})
            changes |= of_database
        if needs_key and not await asyncio.to_thread(self._has_key):
            changes["API_KEY"] = secrets.token_urlsafe(32)
        if not _failures(found):
            found += await self._write(changes)
        return _checks(found) if _failures(found) else SetupSaved(api_key=changes.get("API_KEY"))

    def _has_key(self) -> bool:
        return any(
            each.name == "API_KEY" and each.source != "default" for each in self._store.settings()
        )

    async def _write(self, changes: Changes) -> list[Finding]:
        try:
            await asyncio.to_thread(self._store.save, changes)
        except SettingsError as exc:
            return _unusable(problems_by_name(exc, changes))
        except OSError as exc:
            why = exc.strerror or type(exc).__name__
            return [checks.data_dir(checks.Disk(folder="DATA_DIR", is_there=True, problem=why))]
        return []

    async def _test_home_assistant(self, changes: Changes) -> list[Finding]:
        return await self._test(
            changes,
            lambda _: home_assistant.NAMES,
            lambda chosen: home_assistant.check(chosen, clock=_now),
        )

    async def _test_database(self, changes: Changes) -> list[Finding]:
        return await self._test(
            changes, database.names, lambda chosen: database.check(chosen, clock=_now)
        )

    def _loaded_with(self, changes: Changes) -> Settings | list[Finding]:
        """Return the settings as they would be, or why they cannot be used; reads files."""
        if refused := self._store.refusals(changes):
            return _unusable(refused.items())
        try:
            return self._store.loaded_with(changes)
        except SettingsError as exc:
            return _unusable(problems_by_name(exc, changes))

    async def _test(
        self,
        changes: Changes,
        names: Callable[[Settings], Sequence[str]],
        check: Callable[[Settings], AsyncGenerator[Finding, None]],
    ) -> list[Finding]:
        chosen = await asyncio.to_thread(self._loaded_with, changes)
        if not isinstance(chosen, Settings):
            return chosen
        hidden = partial(one_line, secrets=secrets_of(chosen))
        async with self._testing:
            found = await bounded(names(chosen), check(chosen), self._within_s)
        return [without_secrets(each, hidden) for each in found]


def _home_assistant_values(choice: HomeAssistantChoice) -> dict[str, str | None]:
    return {
        "HOME_ASSISTANT_URL": choice.url,
        "HOME_ASSISTANT_TOKEN": choice.token.get_secret_value(),
    }


def _unusable(problems: Iterable[tuple[str, str]]) -> list[Finding]:
    return [
        Finding(name="settings", status="failed", what=text, readings={"of": name})
        for name, text in problems
    ]


def _failures(found: Sequence[Finding]) -> list[Finding]:
    return [each for each in found if each.status == "failed"]


def _checks(found: Sequence[Finding]) -> list[Check]:
    return [
        Check(
            name=each.name,
            status=each.status,
            text=each.what,
            advice=each.advice,
            field=_field(each),
        )
        for each in found
    ]


def _field(found: Finding) -> str | None:
    if found.name == "settings":
        return FIELDS.get(str(found.readings.get("of")))
    return FIELDS_OF_CHECKS.get(found.name)
