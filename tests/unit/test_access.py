"""Who is answered: a table of every rule."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from app.api.access import (
    AccessRules,
    Allow,
    Asked,
    Challenge,
    Refuse,
    User,
    asked_in,
    decide,
    path_in,
)

KEY = "correct-horse-battery-staple"
OPEN = AccessRules()
LOCKED = AccessRules(api_key=KEY, cors_origins=("https://panel.example",))


def _verdict(rules: AccessRules, asked: Asked) -> str:
    match decide(rules, asked):
        case Allow():
            return "allow"
        case Challenge():
            return "challenge"
        case Refuse(problem):
            return problem.code


def _asked(path: str = "/api/v1/events", **changes: object) -> Asked:
    headers = {"host": ["localhost:8001"]}
    headers.update(changes.pop("headers", {}))  # type: ignore[call-overload]
    arguments = {"path": path, "peer": "127.0.0.1", "headers": headers, **changes}
    return Asked(**arguments)  # type: ignore[arg-type]


def _ws(**changes: object) -> Asked:
    return _asked("/ws", websocket=True, **changes)


@pytest.mark.parametrize(
    ("asked", "verdict"),
    [
        (_asked(), "allow"),
        (_asked("/"), "allow"),
        (_asked(method="DELETE"), "allow"),
        (_ws(), "allow"),
        # the peer
        (_asked(peer="127.8.9.10"), "allow"),
        (_asked(peer="::1"), "allow"),
        (_asked(peer="::ffff:127.0.0.1"), "allow"),
        (_asked(peer="192.168.1.7"), "api_key_needed"),
        (_asked("/", peer="192.168.1.7"), "api_key_needed"),
        (_asked("/docs", peer="192.168.1.7"), "api_key_needed"),
        (_asked(peer="::ffff:192.168.1.7"), "api_key_needed"),
        (_asked(peer=None), "api_key_needed"),
        (_asked(peer="testclient"), "api_key_needed"),
        (_ws(peer="192.168.1.7"), "api_key_needed"),
        # the Host
        (_asked(headers={"host": ["LOCALHOST"]}), "allow"),
        (_asked(headers={"host": ["127.0.0.1:8001"]}), "allow"),
        (_asked(headers={"host": ["[::1]:8001"]}), "allow"),
        (_asked(headers={"host": ["evil.example"]}), "api_key_needed"),
        (_asked(headers={"host": ["localhost.evil.example"]}), "api_key_needed"),
        (_asked(headers={"host": ["127.0.0.1.evil.example"]}), "api_key_needed"),
        (_asked(headers={"host": ["localhost:8001@evil.example"]}), "api_key_needed"),
        (_asked(headers={"host": ["localhost", "evil.example"]}), "api_key_needed"),
        (_asked(headers={"host": ["[::1"]}), "api_key_needed"),
        (_asked(headers={"host": [""]}), "api_key_needed"),
        (_asked(headers={"host": []}), "api_key_needed"),
        # a proxy
        (_asked(headers={"forwarded": ["for=1.2.3.4"]}), "api_key_needed"),
        (_asked(headers={"x-forwarded-for": ["127.0.0.1"]}), "api_key_needed"),
        (_asked(headers={"x-forwarded-proto": ["https"]}), "api_key_needed"),
        (_asked(http_version="1.0"), "api_key_needed"),
        (_ws(headers={"via": ["1.1 proxy"]}), "api_key_needed"),
        (_asked("/metrics", http_version="1.0"), "allow"),
        # always open
        (_asked("/health", peer="192.168.1.7", headers={"host": ["nas"]}), "allow"),
        (_asked("/health/live", peer=None), "allow"),
        (_asked("/health/ready", peer=None), "allow"),
        (_asked("/metrics", headers={"x-forwarded-for": ["1.2.3.4"]}), "allow"),
        (_asked("/healthy", peer=None), "api_key_needed"),
        (_asked("/health/../api/v1/events", peer=None), "api_key_needed"),
        (_asked("/health", peer=None, websocket=True), "api_key_needed"),
        # a key where there is none
        (_asked(peer="192.168.1.7", headers={"x-api-key": [""]}), "api_key_needed"),
        # foreign pages
        (_asked(headers={"origin": ["https://evil.example"]}), "allow"),
        (
            _asked(method="DELETE", headers={"origin": ["https://evil.example"]}),
            "foreign_origin",
        ),
        (_asked(method="POST", headers={"origin": ["null"]}), "foreign_origin"),
        (_asked(method="POST", headers={"origin": ["http://[bad"]}), "foreign_origin"),
        (_asked(method="POST", headers={"origin": ["http://localhost:8001"]}), "allow"),
        (_asked(method="POST", headers={"origin": ["http://localhost:9"]}), "foreign_origin"),
        (_ws(headers={"origin": ["http://evil.example"]}), "foreign_origin"),
        (_ws(headers={"origin": ["http://localhost:8001"]}), "allow"),
    ],
)
def test_without_a_key_only_this_machine_is_answered(asked: Asked, verdict: str) -> None:
    """The peer, the Host and the absence of a proxy must all speak for it."""
    assert verdict == _verdict(OPEN, asked)


@pytest.mark.parametrize(
    ("asked", "verdict"),
    [
        # what holds no data
        (_asked("/", peer="192.168.1.7"), "allow"),
        (_asked("/static/app.js"), "allow"),
        (_asked("/docs"), "allow"),
        (_asked("/openapi.json"), "allow"),
        (_asked("/health"), "allow"),
        (_asked("/metrics", headers={"x-api-key": ["wrong"]}), "allow"),
        (_asked("/staticky"), "api_key_missing"),
        # the rest
        (_asked(), "api_key_missing"),
        (_asked(headers={"x-api-key": [KEY]}), "allow"),
        (_asked(headers={"authorization": [f"Bearer {KEY}"]}), "allow"),
        (_asked(headers={"authorization": [f"bearer  {KEY}"]}), "allow"),
        (_asked(headers={"authorization": [f"Basic {KEY}"]}), "api_key_missing"),
        (_asked(headers={"x-api-key": ["wrong"]}), "api_key_wrong"),
        (_asked(headers={"x-api-key": [""]}), "api_key_wrong"),
        (_asked(headers={"x-api-key": [KEY + "x"]}), "api_key_wrong"),
        (_asked(headers={"x-api-key": ["clé\udcff"]}), "api_key_wrong"),
        (_asked(headers={"authorization": ["Bearer"]}), "api_key_wrong"),
        (
            _asked(
                peer="192.168.1.7",
                headers={"host": ["nas"], "x-forwarded-for": ["1.2.3.4"], "x-api-key": [KEY]},
            ),
            "allow",
        ),
        # WebSockets
        (_ws(), "challenge"),
        (_ws(headers={"x-api-key": [KEY]}), "allow"),
        (_ws(headers={"x-api-key": ["wrong"]}), "api_key_wrong"),
        (_ws(headers={"host": ["nas:8001"], "origin": ["http://nas:8001"]}), "challenge"),
        (_ws(headers={"host": ["nas"], "origin": ["https://NAS"]}), "challenge"),
        (_ws(headers={"origin": ["https://panel.example"]}), "challenge"),
        (
            _ws(headers={"origin": ["https://evil.example"], "x-api-key": [KEY]}),
            "foreign_origin",
        ),
        # what changes things
        (
            _asked(method="POST", headers={"origin": ["https://evil.example"], "x-api-key": [KEY]}),
            "foreign_origin",
        ),
        (
            _asked(
                method="POST", headers={"origin": ["https://panel.example"], "x-api-key": [KEY]}
            ),
            "allow",
        ),
        (_asked(method="DELETE", headers={"x-api-key": [KEY]}), "allow"),
    ],
)
def test_with_a_key_everything_that_holds_data_requires_it(asked: Asked, verdict: str) -> None:
    """Wherever the request comes from; pages of foreign origins are refused even with it."""
    assert verdict == _verdict(LOCKED, asked)


@pytest.mark.parametrize(
    "name",
    [
        "Via", "Forwarded", "X-Real-IP", "X-Forwarded-Host", "X-Forwarded", "CF-Connecting-IP",
        "CF-Ray", "CDN-Loop", "True-Client-IP", "X-Client-IP", "X-Cluster-Client-IP",
        "Fastly-Client-IP", "X-Original-URL", "X-Envoy-External-Address", "X-Original-Host",
        "X-Amzn-Trace-Id", "X-Amz-Cf-Id", "X-Cloud-Trace-Context", "Fly-Client-IP",
        "Tailscale-User-Login", "X-Ingress-Path", "X-Hassio-User-ID", "X-Remote-User-Id",
        "X-ARR-LOG-ID", "X-Azure-ClientIP", "X-Varnish", "X-Request-Id", "X-Scheme",
        "X-Vercel-Id", "X-Kong-Request-Id", "WL-Proxy-Client-IP", "X-ProxyUser-Ip",
        "Remote-User", "X-Auth-Request-User", "Akamai-Origin-Hop",
    ],
)  # fmt: skip
def test_a_header_that_a_proxy_adds_is_recognized(name: str) -> None:
    """Without a key its request is refused, and the reason names the header."""
    asked = asked_in(
        {
            "type": "http",
            "path": "/api/v1/dead-letters",
            "method": "DELETE",
            "client": ("127.0.0.1", 5),
            "headers": [(b"host", b"localhost"), (name.encode(), b"x")],
        }
    )
    decision = decide(OPEN, asked)

    assert isinstance(decision, Refuse)
    assert f"was forwarded by a proxy, which sent {name.lower()}" in decision.problem.detail


@pytest.mark.parametrize(
    "name",
    [
        "Accept", "Accept-Encoding", "Accept-Language", "Cache-Control", "Connection", "Cookie",
        "Content-Length", "Content-Type", "DNT", "If-None-Match", "If-Modified-Since", "Origin",
        "Pragma", "Priority", "Range", "Referer", "Sec-CH-UA", "Sec-Fetch-Site", "Sec-GPC",
        "Sec-WebSocket-Key", "TE", "Upgrade", "Upgrade-Insecure-Requests", "User-Agent",
        "X-Prometheus-Scrape-Timeout-Seconds", "X-Requested-With", "X-API-Key", "Traceparent",
        "X-Grafana-Org-Id", "X-DataSource-Uid", "Expect", "Keep-Alive", "Authorization",
    ],
)  # fmt: skip
def test_headers_of_browsers_and_programs_do_not_look_like_a_proxy(name: str) -> None:
    """A direct request of this machine is answered with them."""
    assert _verdict(OPEN, _asked(headers={name.lower(): ["x"]})) == "allow"


def test_a_refused_request_says_what_to_do() -> None:
    """Without a key the problem names the setting and the reason; with one, how to send it."""
    without = decide(OPEN, _asked(peer="192.168.1.7"))
    missing = decide(LOCKED, _asked())

    assert isinstance(without, Refuse)
    assert isinstance(missing, Refuse)
    assert without.problem.status == 403
    assert "Set API_KEY" in without.problem.detail
    assert "TRUSTED_PEERS" in without.problem.detail
    assert (
        missing.problem.status,
        missing.problem.headers["WWW-Authenticate"].split()[0],
    ) == (401, "Bearer")


def test_a_trusted_network_is_answered_without_a_key() -> None:
    """The bridge of a container host, for example."""
    rules = AccessRules(trusted_peers=(ipaddress.ip_network("172.17.0.0/16"),))

    assert [
        _verdict(rules, _asked(peer="172.17.0.1")),
        _verdict(rules, _asked()),
    ] == ["allow", "api_key_needed"]


def test_the_repr_of_the_access_rules_hides_the_key() -> None:
    """Neither the rules nor a request can leak it into a log."""
    shown = repr(LOCKED) + repr(_asked(headers={"x-api-key": [KEY]}))

    assert KEY not in shown


def test_no_offered_key_is_right_while_none_is_set() -> None:
    """An empty key fits nothing."""
    assert not OPEN.is_key("")


@pytest.mark.parametrize(
    ("path", "root_path", "seen"),
    [
        ("/ingest/api/v1/events", "/ingest", "/api/v1/events"),
        ("/ingest/", "/ingest", "/"),
        ("/ingestion", "/ingest", "/ingestion"),
        ("/health", "", "/health"),
    ],
)
def test_the_access_rules_see_the_path_that_the_router_sees(
    path: str, root_path: str, seen: str
) -> None:
    """Below the path that the service is mounted at, the same rules hold."""
    assert seen == path_in({"path": path, "root_path": root_path})


def test_the_access_rules_read_a_request_from_its_scope() -> None:
    """Repeated headers are kept, names are lower-cased, invalid bytes are accepted."""
    asked = asked_in(
        {
            "type": "websocket",
            "http_version": "1.1",
            "path": "/ws",
            "client": None,
            "headers": [(b"Host", b"a"), (b"host", b"b"), (b"X-API-Key", b"\xff")],
        }
    )

    assert (
        Asked(websocket=True, path="/ws", headers={"host": ["a", "b"], "x-api-key": ["\udcff"]})
        == asked
    )


def test_an_address_that_uvicorn_took_from_a_header_is_ignored() -> None:
    """It gives it the port 0: who sends the header could choose it."""
    scope = {"type": "http", "path": "/", "client": ("192.0.2.1", 0), "headers": []}

    assert asked_in(scope).peer is None
    assert asked_in({**scope, "client": ("192.0.2.1", 5)}).peer == "192.0.2.1"


INGRESS = AccessRules(ingress_peers=(ipaddress.ip_network("172.30.32.2"),))
FORWARDED = {
    "host": ["homeassistant.local:8123"],
    "x-ingress-path": ["/api/hassio_ingress/abc"],
    "x-forwarded-for": ["192.168.1.7, 172.30.32.1"],
    "x-forwarded-host": ["ha.example"],
    "x-remote-user-id": ["0123"],
    "x-remote-user-name": ["anna"],
}


def _through_ingress(path: str = "/api/v1/events", **changes: object) -> Asked:
    headers = FORWARDED | changes.pop("headers", {})  # type: ignore[operator]
    return _asked(path, **({"peer": "172.30.32.2", "headers": headers} | changes))


@pytest.mark.parametrize(
    ("asked", "verdict"),
    [
        (_through_ingress(), "allow"),
        (_through_ingress("/"), "allow"),
        (_through_ingress(method="DELETE"), "allow"),
        (_through_ingress("/ws", websocket=True), "allow"),
        # pages of Home Assistant, also behind a proxy that changes the Host
        (
            _through_ingress(
                method="POST", headers={"origin": ["http://homeassistant.local:8123"]}
            ),
            "allow",
        ),
        (_through_ingress(method="POST", headers={"origin": ["https://ha.example"]}), "allow"),
        (
            _through_ingress(method="POST", headers={"origin": ["https://evil.example"]}),
            "foreign_origin",
        ),
        (
            _through_ingress("/ws", websocket=True, headers={"origin": ["https://evil.example"]}),
            "foreign_origin",
        ),
        # other peers that send the same headers
        (_through_ingress(peer="172.30.32.3"), "api_key_needed"),
        (_through_ingress(peer="172.30.33.5"), "api_key_needed"),
        (_through_ingress(peer="127.0.0.1"), "api_key_needed"),
        (_through_ingress(peer="192.168.1.7"), "api_key_needed"),
        (_through_ingress(peer=None), "api_key_needed"),
        (_through_ingress("/ws", websocket=True, peer="172.30.32.3"), "api_key_needed"),
        (
            _through_ingress(
                method="POST", peer="127.0.0.1", headers={"origin": ["https://ha.example"]}
            ),
            "foreign_origin",
        ),
        # the Supervisor itself, without a user
        (_asked(peer="172.30.32.2"), "api_key_needed"),
        # this machine
        (_asked(), "allow"),
    ],
)
def test_as_an_app_requests_through_ingress_are_answered(asked: Asked, verdict: str) -> None:
    """Only those that the Supervisor forwards; what others claim in headers counts for nothing."""
    assert verdict == _verdict(INGRESS, asked)


def test_ingress_means_nothing_outside_of_an_app() -> None:
    """Also from the address that the Supervisor has elsewhere."""
    assert _verdict(OPEN, _through_ingress()) == "api_key_needed"
    assert _verdict(LOCKED, _through_ingress()) == "api_key_missing"


def test_a_user_of_home_assistant_needs_no_api_key() -> None:
    """Everybody else does when one is set."""
    locked = replace(INGRESS, api_key=KEY)

    assert _verdict(locked, _through_ingress()) == "allow"
    assert _verdict(locked, _through_ingress(peer="172.30.32.3")) == "api_key_missing"


def test_ingress_names_the_user() -> None:
    """As the Supervisor does; a session without a user has none."""
    decision = decide(INGRESS, _through_ingress())
    assert decision == Allow(User("0123", "anna", None))

    nameless = {name: sent for name, sent in FORWARDED.items() if "remote-user" not in name}
    assert decide(INGRESS, _asked(peer="172.30.32.2", headers=nameless)) == Allow(None)
    # Without ingress nobody is named.
    assert decide(LOCKED, _asked(headers={"x-api-key": [KEY], "x-remote-user-id": ["1"]})) == (
        Allow(None)
    )
