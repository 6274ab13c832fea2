"""Access while the service waits for its set-up: this machine, ingress, the API key, or a link.

Docker's bridge is not loopback, so a person at another machine follows the one-time link from the
log. It opens a session for one browser, which ends with the set-up.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import replace
from http.cookies import CookieError, SimpleCookie

from app.api.access import (
    ALWAYS_OPEN,
    API_KEY_MISSING,
    API_KEY_WRONG,
    FOREIGN_ORIGIN,
    AccessRules,
    Allow,
    Asked,
    Decision,
    Refuse,
    holds_no_data,
    is_foreign,
    is_ingress,
    not_of_this_machine,
    offered_keys,
    user_in,
)
from app.api.clients import LOOPBACK
from app.api.problems import Problem

COOKIE = "websocket_ingestion_setup"

_WAYS = (
    "The set-up answers only this machine, Home Assistant's ingress, requests with the API_KEY, and"
    " the first browser that opens the link in the log of this start."
)
_REFUSED = Problem(status=403, code="setup_refused", detail=_WAYS)


class SetupLink:
    """The link of one start, and the session of the browser that followed it."""

    def __init__(self) -> None:
        self.key = secrets.token_urlsafe(32)
        self._session: str | None = None

    def redeem(self, key: str | None) -> str | None:
        """Return the session to store in the cookie; None unless it is the first right key."""
        if self._session is not None or not _is_same(key or "", self.key):
            return None
        self._session = secrets.token_urlsafe(32)
        return self._session

    def opens(self, asked: Asked) -> bool:
        """Whether the request belongs to the session."""
        session = self._session
        return session is not None and any(_is_same(each, session) for each in _sessions(asked))


def decide_setup(rules: AccessRules, asked: Asked, *, link: SetupLink) -> Decision:
    """Return what to do with a request while the service waits for its set-up."""
    if is_foreign(rules, asked):
        return Refuse(FOREIGN_ORIGIN)
    if is_ingress(rules, asked):
        return Allow(user_in(asked.headers))
    if _is_known(rules, asked):
        return Allow()
    if link.opens(asked):
        return Allow(is_by_link=True)
    # The page itself holds nothing; it shows what the API answers.
    is_open = holds_no_data(asked) or (asked.path in ALWAYS_OPEN and not asked.websocket)
    return Allow() if is_open else Refuse(_refusal(rules, asked))


def _is_known(rules: AccessRules, asked: Asked) -> bool:
    """Whether the request has the key, or comes from this machine."""
    if any(rules.is_key(key) for key in offered_keys(asked.headers)):
        return True
    # With a key, TRUSTED_PEERS says nothing: it is about requests without one.
    peers = rules if rules.api_key is None else replace(rules, trusted_peers=LOOPBACK)
    return not_of_this_machine(peers, asked) is None


def _refusal(rules: AccessRules, asked: Asked) -> Problem:
    if rules.api_key is None:
        return _REFUSED
    return API_KEY_WRONG if offered_keys(asked.headers) else replace(API_KEY_MISSING, detail=_WAYS)


def _sessions(asked: Asked) -> list[str]:
    found = []
    for header in asked.headers.get("cookie", ()):
        try:
            cookies = SimpleCookie(header)
        except CookieError:
            continue
        if COOKIE in cookies:
            found.append(cookies[COOKIE].value)
    return found


def _is_same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="surrogatepass"), other.encode())
