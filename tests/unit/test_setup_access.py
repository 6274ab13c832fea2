"""Who is answered while the service waits for its set-up."""

from __future__ import annotations

import ipaddress

import pytest

from app.api.access import AccessRules, Allow, Asked, Refuse, User
from app.api.setup_access import COOKIE, SetupLink, decide_setup

KEY = "correct-horse-battery-staple"
INGRESS = "172.30.32.2"
OPEN = AccessRules()
LOCKED = AccessRules(api_key=KEY)
APP = AccessRules(ingress_peers=(ipaddress.ip_network(INGRESS),))
STRANGER = "192.168.1.7"


def verdict(asked: Asked, *, rules: AccessRules = OPEN, link: SetupLink | None = None) -> str:
    """Return what is decided, in a word."""
    match decide_setup(rules, asked, link=link or SetupLink()):
        case Allow(is_by_link=True):
            return "link"
        case Allow():
            return "allow"
        case Refuse(problem):
            return problem.code
        case other:
            raise AssertionError(other)


def asked(path: str = "/api/v1/setup", **changes: object) -> Asked:
    """Return a request of this machine; `changes` replaces parts of it."""
    headers = {"host": ["localhost:8001"]}
    headers.update(changes.pop("headers", {}))  # type: ignore[call-overload]
    return Asked(**{"path": path, "peer": "127.0.0.1", "headers": headers, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/api/v1/setup", "/api/v1/settings", "/setup", "/", "/docs"])
def test_this_machine_is_answered_with_and_without_an_api_key(path: str) -> None:
    """Its programs could read DATA_DIR as well."""
    assert verdict(asked(path)) == "allow"
    assert verdict(asked(path), rules=LOCKED) == "allow"


@pytest.mark.parametrize(
    "changes",
    [
        {"peer": STRANGER},
        {"peer": None},
        {"peer": "172.17.0.1"},  # Docker's bridge
        {"headers": {"host": ["evil.example"]}},  # DNS rebinding
        {"headers": {"host": ["localhost", "evil.example"]}},
        {"headers": {"x-forwarded-for": ["127.0.0.1"]}},
        {"headers": {"forwarded": ["for=127.0.0.1"]}},
        {"headers": {"x-real-ip": ["127.0.0.1"]}},
        {"http_version": "1.0"},
        {"peer": STRANGER, "headers": {"x-ingress-path": ["/api/hassio_ingress/x"]}},
        {"peer": STRANGER, "headers": {"x-remote-user-id": ["1"], "x-hass-source": ["core"]}},
        {"peer": STRANGER, "headers": {"x-api-key": [""]}},
        {"peer": STRANGER, "headers": {"cookie": [f"{COOKIE}="]}},
        {"peer": STRANGER, "headers": {"cookie": [f"{COOKIE}=guessed"]}},
        {"peer": STRANGER, "headers": {"cookie": ["\x00=;;"]}},
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/setup", "/api/v1/setup/database", "/api/v1/settings"])
def test_everyone_else_is_refused_with_the_ways_in(path: str, changes: dict[str, object]) -> None:
    """Headers that anybody can send prove nothing."""
    request = asked(path, **changes)
    decision = decide_setup(OPEN, request, link=SetupLink())

    assert isinstance(decision, Refuse)
    assert decision.problem.status == 403
    for way in ("this machine", "ingress", "API_KEY", "link in the log"):
        assert way in decision.problem.detail


def test_ingress_is_answered_from_the_supervisor_only() -> None:
    """With the user that Home Assistant has authenticated."""
    headers = {"x-ingress-path": ["/x"], "x-remote-user-id": ["1"], "host": ["app:8001"]}
    request = asked(peer=INGRESS, headers=headers)

    assert decide_setup(APP, request, link=SetupLink()) == Allow(User("1"))
    assert verdict(request) == "setup_refused"
    assert verdict(asked(peer=STRANGER, headers=headers), rules=APP) == "setup_refused"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-api-key": [KEY]}, "allow"),
        ({"authorization": [f"Bearer {KEY}"]}, "allow"),
        ({"x-api-key": ["wrong"]}, "api_key_wrong"),
        ({}, "api_key_missing"),
    ],
)
def test_the_api_key_is_answered_from_anywhere(
    headers: dict[str, list[str]], expected: str
) -> None:
    """Also through a proxy."""
    proxied = {"x-forwarded-for": ["1.2.3.4"], "host": ["ha.example"], **headers}

    assert verdict(asked(peer=STRANGER, headers=proxied), rules=LOCKED) == expected


@pytest.mark.parametrize("path", ["/setup", "/", "/static/setup.js", "/docs", "/openapi.json"])
def test_the_page_is_open_and_shows_why_the_api_refuses(path: str) -> None:
    """It holds no data, and asks for the key if there is one."""
    assert verdict(asked(path, peer=STRANGER), rules=LOCKED) == "allow"
    assert verdict(asked(path, peer=STRANGER), rules=OPEN) == "allow"
    assert verdict(asked(path, peer=STRANGER, websocket=True)) == "setup_refused"


def test_the_networks_that_are_trusted_without_a_key_need_the_key_when_there_is_one() -> None:
    """TRUSTED_PEERS is about requests without a key."""
    bridge = (ipaddress.ip_network("172.17.0.0/16"),)
    request = asked(peer="172.17.0.1")

    assert verdict(request, rules=AccessRules(trusted_peers=bridge)) == "allow"
    locked = AccessRules(trusted_peers=bridge, api_key=KEY)
    assert verdict(request, rules=locked) == "api_key_missing"


def test_only_the_browser_that_followed_the_link_first_is_answered() -> None:
    """With its cookie; the link itself is of no more use."""
    link = SetupLink()

    session = link.redeem(link.key)

    cookie = {"cookie": [f"theme=dark; {COOKIE}={session}"]}
    assert verdict(asked(peer=STRANGER, headers=cookie), link=link) == "link"
    assert verdict(asked(peer=STRANGER), link=link) == "setup_refused"
    assert link.redeem(link.key) is None


def test_a_wrong_key_does_not_use_up_the_link() -> None:
    """Nobody can lock the owner out by guessing."""
    link = SetupLink()

    assert link.redeem("guessed") is None
    assert link.redeem(None) is None
    assert link.redeem(link.key) is not None


def test_each_start_has_a_link_of_its_own() -> None:
    """An old log opens nothing."""
    assert SetupLink().key != SetupLink().key
    assert len(SetupLink().key) >= 43


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("by", ["this machine", "a key", "ingress", "the link"])
def test_a_page_of_another_site_cannot_drive_the_set_up(method: str, by: str) -> None:
    """Whatever lets its visitor in: a browser always names the origin of a change."""
    link = SetupLink()
    session = link.redeem(link.key) or ""
    ways: dict[str, dict[str, object]] = {
        "this machine": {"headers": {}},
        "a key": {"peer": STRANGER, "headers": {"x-api-key": [KEY]}},
        "ingress": {"peer": INGRESS, "headers": {"x-ingress-path": ["/x"]}},
        "the link": {"peer": STRANGER, "headers": {"cookie": [f"{COOKIE}={session}"]}},
    }
    rules = {"a key": LOCKED, "ingress": APP}.get(by, OPEN)

    def from_page(origin: str) -> str:
        changes = {"method": method, **ways[by]}
        changes["headers"] = {**ways[by]["headers"], "origin": [origin]}  # type: ignore[dict-item]
        return verdict(asked("/api/v1/setup", **changes), rules=rules, link=link)

    assert from_page("http://localhost:8001") in {"allow", "link"}
    assert from_page("https://evil.example") == "foreign_origin"


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_probes_are_always_answered(path: str) -> None:
    """An orchestrator has no key."""
    assert verdict(asked(path, peer=STRANGER, headers={"host": ["pod"]})) == "allow"
