"""`/openapi.json`: FastAPI's document, with access, problems and the models it cannot see."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api.events import EventPage
from app.api.messages import ClientMessage, ServerMessage
from app.api.models import ProblemDocument
from app.api.problems import MEDIA_TYPE

TAGS = [
    {"name": "health", "description": "Needs no key and contains nothing personal."},
    {"name": "live", "description": "Events as they happen."},
    {"name": "events", "description": "History, from the embedded store."},
    {
        "name": "gaps",
        "description": "When nothing was captured, and what was filled.",
    },
    {
        "name": "catalog",
        "description": "Devices, entities, areas and labels.",
    },
    {"name": "data API", "description": "Rows from other instances."},
    {"name": "dead letters", "description": "Points that a database rejected permanently."},
    {"name": "set-up", "description": "Home Assistant, the database and all settings."},
    {"name": "status", "description": "Rates, statistics and diagnostics."},
]

_SCHEMAS = "#/components/schemas/"
_FIRST_ERROR = 400
_OPEN_TAG = "health"
_UNREADABLE = "The body is not JSON in UTF-8"
_EVERYWHERE = {
    "401": "The API_KEY is missing or wrong",
    "403": "Needs an API_KEY, or the page has another origin",
    "422": "A value or parameter of the request is invalid",
    "429": "Too many wrong keys from this address; wait for `Retry-After`",
    "500": "Internal server error; see the service log",
}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of the application, built once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=TAGS,
            servers=[{"url": "."}],  # relative to this document, so also below a path
        )
        _add_models(schema)
        _add_keys(schema)
        _describe_errors(schema)
        app.openapi_schema = schema
    return app.openapi_schema


def _add_models(schema: dict[str, Any]) -> None:
    """Add the models of messages and of JSON we encode, and remove FastAPI's own of a 422."""
    models = schema["components"]["schemas"]
    (server, client, _), structs = msgspec.json.schema_components(
        (ServerMessage, ClientMessage, EventPage), ref_template=_SCHEMAS + "{name}"
    )
    models.update(structs, ServerMessage=server, ClientMessage=client)
    models["ProblemDocument"] = ProblemDocument.model_json_schema(
        ref_template=_SCHEMAS + "{model}", mode="serialization"
    )
    models.update(models["ProblemDocument"].pop("$defs"))
    models.pop("HTTPValidationError", None)
    models.pop("ValidationError", None)


def _add_keys(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "The API_KEY"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    schema["security"] = [{}, {"bearer": []}, {"header": []}]


def _describe_errors(schema: dict[str, Any]) -> None:
    for path in schema["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            if _OPEN_TAG in operation["tags"]:
                operation["security"] = []
                responses.setdefault("500", {"description": _EVERYWHERE["500"]})
            else:
                for status, description in _EVERYWHERE.items():
                    responses.setdefault(status, {"description": description})
            if "requestBody" in operation:
                responses.setdefault("400", {"description": _UNREADABLE})
            for status, response in responses.items():
                if int(status) >= _FIRST_ERROR:
                    _make_problem(response)
            operation["responses"] = dict(sorted(responses.items()))


def _make_problem(response: dict[str, Any]) -> None:
    model = response.get("content", {}).get("application/json", {}).get("schema", {})
    if model.get("$ref") == f"{_SCHEMAS}Snapshot":
        return
    problem = {"$ref": f"{_SCHEMAS}ProblemDocument"}
    response["content"] = {MEDIA_TYPE: {"schema": problem}}
