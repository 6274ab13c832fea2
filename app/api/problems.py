"""Errors as problem documents.

https://www.rfc-editor.org/rfc/rfc9457
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.runtime.errors import StorageError
from app.runtime.logging import RateLimitedLog

logger = logging.getLogger(__name__)
limited_log = RateLimitedLog(logger)

MEDIA_TYPE = "application/problem+json"

_MAX_ERRORS = 100

_CODES = {
    400: "unreadable_body",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    503: "too_many_uploads",
    422: "invalid_request",
    500: "internal_error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One reason for refusing a request."""

    status: int
    code: str
    """For programs: stable, in snake_case."""
    detail: str
    """For people: what was wrong and what to do."""
    headers: Mapping[str, str] = field(default_factory=dict)
    errors: Sequence[Mapping[str, str]] = ()
    """For 422: `location` and `message` of each value that was wrong, never the value."""

    def document(self) -> dict[str, object]:
        """Return the members of the problem document."""
        document: dict[str, object] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.errors:
            document["errors"] = list(self.errors)
        return document


class ProblemRaised(Exception):
    """Carries a problem from a route to the client."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def problem_response(problem: Problem) -> Response:
    """Return the response that carries the problem."""
    # Names in a request may hold half a surrogate pair; escaped it is valid JSON.
    body = json.dumps(problem.document(), ensure_ascii=False).encode(errors="backslashreplace")
    return Response(
        body, status_code=problem.status, headers=dict(problem.headers), media_type=MEDIA_TYPE
    )


def handle_problems(app: FastAPI, *, headers: Mapping[str, str]) -> None:
    """Turn every error of the application into a problem document.

    The response to an unexpected one bypasses the middleware, so its `headers` are set here.
    """

    async def unforeseen(_: Request, __: Exception) -> Response:
        # Starlette raises the exception again after this answer, and the server logs it.
        return problem_response(replace(_UNFORESEEN, headers=headers))

    app.add_exception_handler(ProblemRaised, _raised)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StorageError, _storage)
    app.add_exception_handler(Exception, unforeseen)


_UNFORESEEN = Problem(
    status=500,
    code=_CODES[500],
    detail="Internal server error; see the service log.",
)


_UNREADABLE = Problem(status=400, code=_CODES[400], detail="The body is incomplete.")


async def refuse_unknown_parameters(request: Request) -> None:
    """Refuse query parameters that a route of `/api/v1` does not have, as a dependency.

    Ignoring a misspelt filter would return, or delete, more than requested. Routes of HomeIQ's
    data API keep ignoring them.
    """
    route = request.scope["route"]
    if not route.path.startswith("/api/v1/"):
        return
    known = {field.alias for field in route.dependant.query_params}
    if unknown := sorted(request.query_params.keys() - known):
        raise RequestValidationError(
            [{"loc": ("query", name), "msg": "Unknown parameter"} for name in unknown]
        )


async def _raised(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, ProblemRaised)
    return problem_response(exc.problem)


async def _left(_: Request, __: Exception) -> Response:
    """Answer a client that disconnected in the middle of its body."""
    return problem_response(_UNREADABLE)


async def _http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    status = exc.status_code
    details = {
        400: "The body is not JSON in UTF-8.",
        404: "There is nothing at this address; /docs lists what there is.",
        405: f"{request.method} is not possible at this address.",
        413: "The body is larger than this service reads.",
        503: "Too many uploads are in progress; try again later.",
    }
    return problem_response(
        Problem(
            status=status,
            code=_CODES.get(status, "refused"),
            detail=details.get(status, HTTPStatus(status).phrase),
            headers=exc.headers or {},
        )
    )


async def _invalid(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    return problem_response(
        Problem(
            status=422,
            code=_CODES[422],
            detail="Some values of the request cannot be used; see `errors`.",
            errors=[
                {"location": ".".join(str(part) for part in error["loc"]), "message": error["msg"]}
                for error in exc.errors()[:_MAX_ERRORS]
            ],
        )
    )


async def _storage(request: Request, exc: Exception) -> Response:
    path = request.scope["route"].path
    limited_log.warning("%s could not be answered: %s", path, exc, kind=path)
    return problem_response(
        Problem(
            status=503,
            code="storage_failed",
            detail="A local database could not answer; the log says why.",
        )
    )
