"""The documents are correct: links resolve, and commands, variables and routes exist.

Every line of every shell block is a Makefile target, a command of `python -m app` that accepts
these arguments, or a command that cannot be run here, with the reason.
"""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from app.api.application import build_api
from app.commands.command_line import parse
from app.settings import variables
from tests.fakes.documents import DOCUMENTS, ROOT, blocks, prose
from tests.fakes.service import components

LANGUAGES = {"sh", "ini", "json", "python", "text", "influxql", "flux", "sql"}

NOT_RUN = {
    "docker": "the test machine has no Docker engine; the files are linted and parsed",
    "kubectl": "there is no cluster; the manifests are validated against Kubernetes' schemas",
    "systemctl": "there is no systemd; the unit is verified",
    "systemd-run": "as systemctl",
    "journalctl": "as systemctl",
    "useradd": "changes the machine",
    "install": "changes the machine",
    "python3": "creates environments outside the project; the image's steps are run instead",
    "/opt/uv/bin/pip": "as python3",
    "/opt/uv/bin/uv": "as python3",
    "tar": "copies a folder of the reader's",
    "sqlite3": "checks the integrity of a file with the reader's own program",
    "openssl": "any generator of random text works",
}
"""First words of commands that are not run here, with the reason."""

OTHER_VARIABLES = {
    *("PUBLISH_ADDRESS", "GRAFANA_PASSWORD", "INFLUXDB_ADMIN_PASSWORD"),
    *("SSL_CERT_FILE", "HTTP_PROXY", "NO_COLOR"),
    *("WEATHER_API_KEY", "WEATHER_DEFAULT_LOCATION"),
    *("WEATHER_ENRICHMENT_ENABLED", "WEATHER_CACHE_MINUTES"),
}
"""Variables of Compose, Python and the tests, and variables that are accepted and ignored."""

NOT_SERVED = {"/internal/services/bulk_upsert"}
"""Routes that are documented as missing."""

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")
_INLINE = re.compile(r"`((?:make|python -m app|docker compose) [^`…]*)`")
_VARIABLE = re.compile(r"`([A-Z][A-Z0-9_]*_[A-Z0-9_]+)(?:=[^`]*)?`")
_PATH = re.compile(r"`((?:app|simulator|tests|benchmarks|docker|docs)/[\w./-]*)(?:::\w+)?`")
_ROUTE = re.compile(r"`(?:(GET|POST|DELETE) )?(/(?:api|health|internal|metrics|ws)\b[\w/{}.-]*)`")


def _commands() -> list[tuple[str, str]]:
    """Return each distinct command of the documents, with the first document that has it."""
    found: dict[str, str] = {}
    for document in DOCUMENTS:
        lines = [
            re.sub(r"\s+#.*", "", line).strip()
            for block in blocks(document)
            if block.language == "sh"
            for line in block.text.replace("\\\n", "").splitlines()
        ]
        for command in (*lines, *_INLINE.findall(prose(document))):
            found.setdefault(command, document.name)
    return [(command, document) for command, document in found.items() if command]


COMMANDS = _commands()
OURS = sorted({command for command, _ in COMMANDS if command.startswith("python -m app ")})


def _links(document: Path) -> list[str]:
    return [first or second for first, second in _LINK.findall(prose(document))]


def _anchors(document: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@cache
def _served() -> dict[str, dict[str, object]]:
    """Return the operations of each route by method."""
    paths: dict[str, dict[str, object]] = build_api(components()).openapi()["paths"]
    return paths


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_of_a_document_resolves(document: Path) -> None:
    """To a file of this project, and to a heading in it."""
    broken = []
    for link in _links(document):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_code_block_names_its_language(document: Path) -> None:
    """A block without a language would not be checked."""
    found = {block.language for block in blocks(document)}
    fences = document.read_text().count("\n```")

    assert found - LANGUAGES == set()
    assert 2 * len(blocks(document)) == fences


@pytest.mark.parametrize(("command", "document"), COMMANDS)
def test_every_documented_command_exists(command: str, document: str) -> None:
    """Or is listed as one that cannot be run here, with a reason."""
    first, *words = shlex.split(command)
    match first:
        case "make":
            assert words[0] in _targets(), document
        case "python":
            assert command in OURS
        case "cp":
            *sources, _ = (word for word in words if not word.startswith("--"))
            # The documents may have changed the folder before.
            assert all((ROOT / source.removeprefix("../")).exists() for source in sources)
        case "cd":
            assert (ROOT / words[0]).is_dir()
        case _:
            assert first in NOT_RUN, document


@pytest.mark.parametrize("command", OURS)
def test_our_commands_accept_the_documented_arguments(command: str) -> None:
    """A command that is only mentioned must have a help page."""
    arguments = shlex.split(command)[len(("python", "-m", "app")) :]
    if len(arguments) == 1:
        arguments.append("--help")
        with pytest.raises(SystemExit, match=r"^0$"):
            parse(arguments)
    else:
        assert parse(arguments).command == arguments[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_documented_variable_is_a_setting(document: Path) -> None:
    """Setting any other name would have no effect."""
    known = {name for variable in variables() for name in variable.names} | OTHER_VARIABLES

    assert set(_VARIABLE.findall(prose(document))) - known == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_documented_route_is_served(document: Path) -> None:
    """With the documented method, if there is one."""
    served = _served()
    missing = [
        (method, path)
        for method, path in _ROUTE.findall(prose(document))
        if path not in {*served, *NOT_SERVED} or (method and method.lower() not in served[path])
    ]

    assert missing == []


def test_every_command_that_cannot_be_run_is_in_the_documents() -> None:
    """The list of exceptions has no unused entries."""
    firsts = {command.split()[0] for command, _ in COMMANDS}

    assert set(NOT_RUN) - firsts == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_of_the_repository_that_a_document_names_exists(document: Path) -> None:
    """A file that was moved or deleted is renamed in the documents, too."""
    paths = set(_PATH.findall(prose(document))) - {"docker/.env"}  # the reader creates it

    assert {path for path in paths if not (ROOT / path).exists()} == set()
