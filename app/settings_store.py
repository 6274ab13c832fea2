"""The settings as clients of the API see and change them, in DATA_DIR/settings.json."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal, TypeAlias

from app.runtime.environment import cleaned, read_environment
from app.runtime.errors import SettingsError
from app.runtime.logging import shown_url
from app.runtime.settings_file import write_settings
from app.settings import PLACEHOLDERS, Settings, Variable, load_settings, stored_settings, variables

Source: TypeAlias = Literal["environment", "file", "default"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting and where it comes from."""

    variable: Variable
    source: Source
    value: str | None
    """What a person may see of it; None for a secret, and for one that is not set."""

    @property
    def name(self) -> str:
        """The name to use."""
        return self.variable.names[0]

    @property
    def is_read_only(self) -> bool:
        """Whether only the environment can change it."""
        return self.source == "environment" or self.variable.is_environment_only


class SettingsStore:
    """Reads the settings of all sources, and changes DATA_DIR/settings.json."""

    def __init__(
        self,
        env_file: Path | None = None,
        *,
        restart: Callable[[], None] | None = None,
        is_setup: bool = False,
    ) -> None:
        """`restart` applies changes; without it there are none. `is_setup`: see load_for_setup."""
        self._env_file = env_file
        self.restart = restart
        self.is_setup = is_setup
        self._saving = Lock()

    def settings(self) -> list[Setting]:
        """Return every setting."""
        environment = read_environment(self._env_file)
        _, stored = stored_settings(environment)
        files_of_secrets = {each.file_names for each in variables() if each.file_names}
        found = []
        for each in variables():
            if each.names in files_of_secrets:
                continue
            source: Source = "default"
            value = environment.find((*each.names, *each.file_names))
            if value is not None:
                source = "environment"
            elif stored.get(each.names[0]):
                source, value = "file", (each.names[0], stored[each.names[0]])
            shown = None if value is None or each.is_secret else _shown(value[1])
            found.append(Setting(variable=each, source=source, value=shown))
        return found

    def loaded_with(self, changes: Mapping[str, str | None]) -> Settings:
        """Return the settings as they would be; None removes one.

        Raises:
            SettingsError: they could not be used.
        """
        _, stored = stored_settings(read_environment(self._env_file))
        base = PLACEHOLDERS if self.is_setup else {}
        return load_settings(self._env_file, stored=_merged({**base, **stored}, changes))

    def refusals(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        """Return a sentence for each change that is not possible here."""
        known = {setting.name: setting for setting in self.settings()}
        found = {}
        for name, text in changes.items():
            setting = known.get(name)
            if setting is None:
                found[name] = f"{name[:100]!r} is not a setting."
            elif setting.source == "environment":
                found[name] = f"{name} is set in the environment, which overrides any other value."
            elif setting.is_read_only:
                found[name] = f"{name} can only be set in the environment."
            elif name.endswith("_URL") and text and text != setting.value:
                found |= _credentials_for(setting, known.values(), changes)
        return found

    def save(self, changes: Mapping[str, str | None]) -> bool:
        """Change the file, and return whether anything is different; None removes a setting.

        Raises:
            SettingsError: the settings could not be used; nothing is saved.
            OSError: the file cannot be written, and is as before.
        """
        with self._saving:
            return self._save(changes)

    def _save(self, changes: Mapping[str, str | None]) -> bool:
        file, stored = stored_settings(read_environment(self._env_file))
        shown = {setting.name: setting.value for setting in self.settings()}
        # A text that was shown may be less than the value: an address without its password.
        changes = {
            name: text for name, text in changes.items() if text is None or text != shown.get(name)
        }
        merged = _merged(stored, changes)
        if merged == stored:
            return False
        load_settings(self._env_file, stored=merged)
        write_settings(file, merged)
        return True


def _credentials_for(
    address: Setting, settings: Iterable[Setting], changes: Mapping[str, str | None]
) -> dict[str, str]:
    """Return a sentence for each secret that is for the address before.

    Otherwise whoever may change an address could have the secret sent to a server of their own.
    """
    return {
        each.name: f"{each.name} is for the {address.name} before. Enter it again, or remove it."
        for each in settings
        if each.variable.is_secret
        and each.variable.group == address.variable.group
        and not each.variable.is_environment_only
        and each.source != "default"
        and each.name not in changes
    }


def _merged(stored: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    merged = {**stored, **{name: cleaned(text or "") for name, text in changes.items()}}
    return {name: text for name, text in merged.items() if text}


def _shown(text: str) -> str:
    return shown_url(text) if "@" in text and "://" in text else text


def problems_by_name(exc: SettingsError, names: Collection[str]) -> list[tuple[str, str]]:
    """Return each sentence of the error with the first of these settings that it names."""
    return [
        (next((name for name in names if name in problem), ""), f"{problem}.")
        for problem in exc.problems
    ]
