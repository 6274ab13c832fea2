"""Fuzz tests of every parser of foreign input."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.access import AccessRules, Asked, decide
from app.api.filter_stats import _rules
from app.api.live import _decoded, _reply
from app.api.messages import Ping
from app.fanout.hub import Selection, encode_event
from app.homeassistant.protocol import Phase, Session
from app.model import Change
from app.normalize.changes import Normalizer
from app.normalize.filter_rules import Filter, Rules, read_rules
from app.runtime.errors import FilterInvalid
from app.schema.homeiq import HomeiqEncoder
from tests.fakes import hostile
from tests.fakes.snapshots import change

TOKEN = "t" * 40
TIME = "2026-11-23T12:00:00.123456+00:00"

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)
_TIMES = st.just(TIME) | st.datetimes().map(lambda moment: f"{moment.isoformat()}Z") | _JSON
_STATES = st.fixed_dictionaries(
    {},
    optional={
        "entity_id": st.text() | _JSON,
        "state": st.text() | _JSON,
        "attributes": st.dictionaries(st.text(), _JSON, max_size=2) | _JSON,
        "last_changed": _TIMES,
        "last_updated": _TIMES,
        "context": _JSON,
    },
)
_EVENTS = st.fixed_dictionaries(
    {"event_type": st.just("state_changed")},
    optional={
        "data": st.fixed_dictionaries(
            {},
            optional={
                "entity_id": st.just("sensor.a") | st.text() | _JSON,
                "old_state": _STATES | _JSON,
                "new_state": _STATES | _JSON,
            },
        )
        | _JSON,
        "time_fired": _TIMES,
        "context": _JSON,
    },
)


def _streaming() -> Session:
    session = Session(TOKEN)
    session.feed(b'{"type":"auth_required"}')
    session.feed(b'{"type":"auth_ok"}')
    session.feed(b'{"id":2,"type":"result","success":true,"result":null}')
    assert session.phase is Phase.READY
    return session


@settings(max_examples=60)
@given(st.lists(_EVENTS, min_size=1, max_size=3))
def test_every_event_is_written_or_counted(events: list[object]) -> None:
    """From the frame to lines and subscribers nothing raises, and no event is missing."""
    frame = json.dumps([{"id": 2, "type": "event", "event": event} for event in events])

    step = _streaming().feed(frame.encode())
    changes, unusable = Normalizer(dict).changes(step.events)
    lines = HomeiqEncoder("events", instance=None, attribute_fields=()).encode(changes)
    messages = [json.loads(encode_event(each)) for each in changes]

    assert len(events) == len(changes) + len(unusable) + len(step.malformed)
    assert lines.points == len(lines.split()) == len(changes) == len(messages)


@settings(max_examples=60)
@given(st.binary() | st.text() | _JSON.map(json.dumps))
def test_no_message_of_a_client_breaks_the_live_stream(sent: bytes | str) -> None:
    """Any message gets one of three answers."""
    expected = "pong" if isinstance(_decoded(sent), Ping) else "error"
    assert json.loads(_reply(sent))["type"] == expected


@settings(max_examples=60)
@given(st.text(alphabet=st.characters(), max_size=40) | st.just("\ud800"))
def test_no_text_breaks_the_comparison_with_the_key(offered: str) -> None:
    """Also a lone surrogate, which JSON can carry and UTF-8 cannot."""
    rules = AccessRules(api_key="correct-horse-battery-staple")

    assert rules.is_key(offered) is (offered == "correct-horse-battery-staple")


@settings(max_examples=60)
@given(
    st.sampled_from(["GET", "POST", "TRACE"]),
    st.text(),
    st.dictionaries(
        st.sampled_from(["host", "origin", "authorization", "x-api-key", "x-forwarded-for"]),
        st.lists(st.text(), max_size=3),
    ),
    st.none() | st.text(),
)
def test_no_request_breaks_the_access_rules(
    method: str, path: str, headers: dict[str, list[str]], peer: str | None
) -> None:
    """Any headers lead to a decision, and never to one that answers a foreign origin."""
    request = Asked(method=method, path=f"/api/{path}", headers=headers, peer=peer)

    for rules in (AccessRules(), AccessRules(api_key="correct-horse-battery-staple")):
        assert hasattr(decide(rules, request), "problem")


@settings(max_examples=60)
@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4), st.text())
def test_no_glob_breaks_the_selection_of_a_subscriber(
    globs: list[str], domains: list[str], entity_id: str
) -> None:
    """Any text is a glob; without wildcards it matches the entity id that is equal to it."""
    wanted = Selection(entity_id=tuple(globs), domain=tuple(domains)).compiled()
    exact = Selection(entity_id=(_literal(entity_id),)).compiled()

    assert wanted is None or wanted(change(entity_id)) in {True, False}
    assert exact is not None
    assert exact(change(entity_id))


def _literal(text: str) -> str:
    return "".join(f"[{each}]" if each in "*?[" else each for each in text)


_GLOBS = st.lists(
    st.sampled_from(("*", "?", "[", "]", "!", "^", "-", "&&", "~~", "||", "\\", ".", "a", "|", "("))
    | st.text(max_size=2),
    max_size=12,
).map("".join)
_PATTERNS = st.dictionaries(
    st.sampled_from(("entity_id", "domain", "device_class", "area_id", "label", "floor")),
    _GLOBS | st.lists(_GLOBS, max_size=3),
    max_size=3,
)
_FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(("include", "exclude")),
        "patterns": st.lists(_PATTERNS, max_size=3),
        "exceptions": st.lists(_PATTERNS, max_size=2),
    },
)
_NEARLY_FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.text() | _JSON,
        "patterns": st.lists(_PATTERNS | st.dictionaries(st.text(), _JSON, max_size=2)) | _JSON,
        "exceptions": _JSON,
        " - at `": _JSON,
    },
)
_SURROGATES = st.text(st.characters(categories=("Cs", "Lu")), max_size=3)
_TEXTS = (
    _FILTERS.map(json.dumps)
    | _NEARLY_FILTERS.map(json.dumps)
    | _JSON.map(json.dumps)
    | st.dictionaries(_SURROGATES, st.dictionaries(_SURROGATES, _SURROGATES)).map(json.dumps)
    | st.text()
    | st.sampled_from(("9" * 5_000, "[" * 100_000, "\ufeff{}", "NaN", '{"mode":"\\ud800"}'))
)


def _read(text: str) -> Rules | None:
    """Return the rules, or None if they are refused with their place in one printable line."""
    try:
        return read_rules(text)
    except FilterInvalid as exc:
        refusal = str(exc)
    assert re.fullmatch(r"(line \d+, column \d+|\$\S*): .+", refusal)
    assert refusal.encode()
    return None


@settings(max_examples=150)
@given(_TEXTS, st.lists(hostile.changes, min_size=1, max_size=3))
def test_any_text_is_an_entity_filter_or_is_refused_with_its_place(
    text: str, changes: list[Change]
) -> None:
    """Each valid filter decides about every change, and can be shown."""
    rules = _read(text)
    if rules is None:
        return

    entity_filter = Filter(rules)
    selected = entity_filter.selected(changes)

    assert [each for each in changes if entity_filter.passes(each)] == selected
    assert sum(entity_filter.matched) <= len(changes)
    for rule in _rules((*rules.patterns, *rules.exceptions), entity_filter.matched):
        rule.model_dump_json()


@settings(max_examples=150)
@given(_FILTERS, hostile.changes)
def test_one_matching_key_is_enough_for_a_filter(filter_: dict[str, object], one: Change) -> None:
    """A change matches if one literal pattern does, whatever the others are."""
    fitting = {
        "entity_id": "".join(f"[{each}]" if each in "*?[" else each for each in one.entity_id)
    }
    patterns = [fitting, *_as_list(filter_.get("patterns"))]
    if not one.entity_id or _read(json.dumps({"patterns": patterns})) is None:
        return

    excluding, including = (
        Filter(read_rules(json.dumps({"mode": mode, "patterns": patterns})))
        for mode in ("exclude", "include")
    )

    assert not excluding.passes(one)
    assert including.passes(one)


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "glob", ["*a" * 100, "*a*" * 100 + "c", "*?" * 300 + "x", "*[ab]*" * 200 + "c"]
)
def test_no_glob_makes_a_filter_backtrack_exponentially(glob: str) -> None:
    """With backtracking at each `*` these globs would never finish."""
    entity_filter = Filter(
        read_rules(json.dumps({"patterns": [{"entity_id": [glob, f"{glob}{glob}"]}]}))
    )

    assert entity_filter.passes(change("sensor." + "a" * 20_000 + "b"))
