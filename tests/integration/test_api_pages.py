"""The pages, their files, and the document that describes the API: all without internet."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import psutil
import pytest

from app.api.access import AccessRules
from app.api.application import build_api
from app.api.pages import WEB
from app.sinks.embedded import StoredEvent
from tests.fakes.service import api_client, components

PAGES = ("/", "/docs", "/static/setup.html")
"""The last one is served as `/setup` before the set-up."""


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_and_everything_it_loads_are_served_locally(page: str) -> None:
    """No address of the internet is in it, no inline script, and every file exists."""
    async with api_client() as client:
        html = (await client.get(page)).text
        loaded = re.findall(r'(?:src|href)="([^"]+)"', html)
        files = [await client.get(f"/{address}") for address in loaded]

    assert "://" not in html
    assert not re.search(r"<script(?![^>]*\bsrc=)", html)
    assert not re.search(r"\bstyle=|\bon\w+=", html)
    assert [file.status_code for file in files] == [200] * len(loaded)
    assert all(not address.startswith("/") for address in loaded)


@pytest.mark.parametrize("path", ["/", "/docs", "/static/app.js", "/static/swagger/swagger-ui.css"])
async def test_no_file_stays_open_while_a_client_does_not_read(path: str) -> None:
    """Each would cost a second descriptor for its connection."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "http_version": "1.1",
        "scheme": "http",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": None,
    }
    open_files: list[str] = []
    sent = b""

    async def send(message: Any) -> None:
        nonlocal sent
        if message["type"] == "http.response.body":
            open_files.extend(file.path for file in psutil.Process().open_files())
            sent += message["body"]

    async def receive() -> Any:
        await asyncio.Event().wait()

    async with api_client() as client:
        await build_api(components())(scope, receive, send)
        whole = (await client.get(path)).content

    assert sent == whole
    assert not [file for file in open_files if file.endswith((".html", ".js", ".css"))]


def test_scripts_of_the_dashboard_contain_no_internet_address() -> None:
    """What they fetch is relative, so that the page works below a path."""
    svg = "http://www.w3.org/2000/svg"  # the name of a namespace, which nobody fetches
    for script in WEB.glob("*.js"):
        assert not re.search(r"""["'`](https?:)?//""", script.read_text().replace(svg, "")), script


def test_scripts_of_the_dashboard_load_only_each_other() -> None:
    """Every import names a file that is there, next to the one that imports it."""
    imported = {
        name
        for script in WEB.glob("*.js")
        for name in re.findall(r"""from "([^"]+)";""", script.read_text())
    }

    assert imported
    assert all(name.startswith("./") for name in imported)
    assert all((WEB / name).is_file() for name in imported)


def test_scripts_of_the_dashboard_never_turn_text_into_markup() -> None:
    """Names and states of entities are put in with textContent only."""
    for script in WEB.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|write\(", script.read_text())


async def test_swagger_ui_can_show_our_version_of_openapi() -> None:
    """The document is of OpenAPI 3.1, which Swagger UI shows since version 5."""
    async with api_client() as client:
        script = (await client.get("/static/swagger/swagger-ui-bundle.js")).text
        document = (await client.get("/openapi.json")).json()

    version = re.search(r'PACKAGE_VERSION:"(\d+)\.', script)
    assert version is not None
    assert int(version[1]) >= 5
    assert document["openapi"].startswith("3.1")


@pytest.mark.parametrize(
    ("path", "policy"), [("/", "default-src 'self'"), ("/docs", "style-src"), ("/health", "self")]
)
async def test_every_response_has_the_security_headers(path: str, policy: str) -> None:
    """A browser may load nothing from elsewhere, and guess and frame nothing."""
    async with api_client() as client:
        headers = (await client.get(path)).headers

    content_policy = headers["content-security-policy"]
    assert policy in content_policy
    assert "script-src" not in content_policy  # scripts fall under default-src 'self'
    assert "frame-ancestors 'self'" in content_policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert headers["cache-control"] == ("no-store" if path == "/health" else "no-cache")


async def test_only_swagger_ui_may_style_its_parts_from_a_script() -> None:
    """No policy allows a script that does not come as a file from here, or an evaluated one."""
    paths = ("/", "/static/app.js", "/health", "/openapi.json", "/nowhere", "/docs")
    async with api_client() as client:
        policies = [(await client.get(path)).headers["content-security-policy"] for path in paths]

    assert not any("unsafe" in policy for policy in policies[:-1])
    assert policies[-1].count("unsafe") == 1
    assert "style-src 'self' 'unsafe-inline'" in policies[-1]
    assert not any("*" in policy or "http" in policy for policy in policies)


@pytest.mark.parametrize(
    "path",
    ["/static/../api/application.py", "/static/%2e%2e/api/application.py", "/static/", "/static"],
)
async def test_only_files_of_the_dashboard_are_served(path: str) -> None:
    """Nothing beside them can be reached."""
    parts = components(access=AccessRules(api_key="k" * 20))
    async with api_client(parts) as client:
        response = await client.get(httpx.URL(f"http://localhost{path}"))

    assert response.status_code in {401, 404}


async def _document() -> dict[str, Any]:
    async with api_client() as client:
        response = await client.get("/openapi.json")
    document: dict[str, Any] = response.json()
    return document


async def test_openapi_describes_every_route() -> None:
    """Each has a tag, a summary, a description, an example and its errors as problems."""
    document = await _document()

    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["tags"], where
            assert operation["summary"], where
            assert operation["description"], where
            assert "500" in operation["responses"], where
            assert _has_example(operation, document), where
            if "health" not in operation["tags"]:
                assert {"401", "403", "422"} <= set(operation["responses"]), where


def _has_example(operation: dict[str, Any], document: dict[str, Any]) -> bool:
    """Whether an answer shows what it looks like, itself or through its model."""
    shown = [operation["responses"]]
    seen = set()
    while shown:
        node = shown.pop()
        if isinstance(node, list):
            shown += node
        elif isinstance(node, dict):
            if "example" in node or "examples" in node or "const" in node:
                return True
            reference = node.get("$ref")
            if reference and reference not in seen:
                seen.add(reference)
                shown.append(document["components"]["schemas"][reference.rpartition("/")[2]])
            shown += node.values()
    return False


async def test_every_reference_in_openapi_resolves() -> None:
    """The document is whole: no model is named that is not in it."""
    document = await _document()

    references = set(re.findall(r"'#/components/schemas/(\w+)'", str(document)))
    assert references <= set(document["components"]["schemas"])


async def test_openapi_describes_errors_as_problem_documents() -> None:
    """Everywhere but in the 503 of /health, which is the report itself."""
    document = await _document()

    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400 and (path, status) != ("/health", "503"):
                    assert list(response["content"]) == ["application/problem+json"], path


async def test_openapi_describes_the_messages_of_the_websocket() -> None:
    """OpenAPI cannot describe a WebSocket; `GET /ws` answers 426 and names the models."""
    document = await _document()

    operation = document["paths"]["/ws"]["get"]
    models = document["components"]["schemas"]
    assert "426" in operation["responses"]
    assert set(operation["x-websocket-messages"]) == {"server", "client"}
    assert {"type", "event"} <= set(models["EventMessage"]["properties"])
    assert set(models["ServerMessage"]["discriminator"]["mapping"]) == {
        "auth_required",
        "auth_invalid",
        "hello",
        "event",
        "dropped",
        "pong",
        "error",
    }


async def test_openapi_describes_history_as_the_store_returns_it() -> None:
    """Every member of a stored event is in the document, with its type and an example."""
    model = (await _document())["components"]["schemas"]["StoredEvent"]

    assert list(model["properties"]) == list(StoredEvent.__struct_encode_fields__)
    assert model["required"] == list(StoredEvent.__struct_encode_fields__)
    assert model["properties"]["time"] == {
        "examples": ["2026-11-23T10:00:00.123456Z"],
        "format": "date-time",
        "type": "string",
    }
    assert model["properties"]["attributes"]["type"] == "object"
    assert model["properties"]["duration"]["examples"] == [60.0]


async def test_the_service_works_below_a_path_prefix() -> None:
    """The document's server is relative, so Swagger UI calls the right place."""
    document = await _document()

    assert document["servers"] == [{"url": "."}]
