"""Hypothesis strategies for hostile events: texts that break line protocol or JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
from hypothesis import strategies as st

from app.homeassistant.messages import Event, EventData, EventState
from app.model import Change, Context, Placement

SNIPPETS = (
    *",= \"\\\n\r\t\0\x07\x7f#_.:/'é°😀\x85\u2028\ufeff\uffff\ud800\udfff",
    *("\\,", "\\ ", "\\\\", '\\"', '" ', '",', "\\n", "a", "1", "_str", "attr_", "time", "on"),
)

texts = st.lists(
    st.sampled_from(SNIPPETS) | st.text(st.characters(exclude_categories=()), max_size=3),
    max_size=8,
).map("".join)

_STATES = ("on", "off", "home", "unavailable", "unknown", "21.5", "-0", "1e3", "1e400", "007", "٣")

states = texts | st.sampled_from(_STATES) | st.floats().map(repr) | st.integers().map(str)

_zones = st.integers(-23, 23).map(lambda hours: timezone(timedelta(hours=hours)))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_nearby = st.integers(0, 10**16).map(lambda us: _EPOCH + timedelta(microseconds=us))
_extreme = st.datetimes(timezones=_zones)  # mostly outside the range of InfluxDB
moments = _nearby | _nearby | _nearby | _extreme

_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
_known_names = st.sampled_from(("device_class", "unit_of_measurement", "friendly_name"))
objects = st.dictionaries(texts | _known_names, _json_values, max_size=5)


@st.composite
def raw_json(draw: st.DrawFn, values: st.SearchStrategy[Any] = objects) -> msgspec.Raw:
    """Return JSON as any program may write it: with or without spaces, escapes and NaN."""
    text = json.dumps(
        draw(values),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from((None, None, 0, 2, "\t"))),
        separators=draw(st.sampled_from(((",", ":"), (", ", ": "), (" ,", " : ")))),
    )
    return msgspec.Raw(text.encode(errors="surrogatepass"))


def _maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


contexts = st.builds(Context, id=_maybe(texts), parent_id=_maybe(texts), user_id=_maybe(texts))

_state_structs = st.builds(
    EventState,
    state=states,
    last_changed=moments,
    last_updated=_nearby | moments,
    attributes=raw_json() | raw_json(_json_values),
)

entity_ids = st.just("sensor.kitchen") | st.tuples(
    st.sampled_from(("sensor", "lock")) | texts, texts
).map(".".join)

events = st.builds(
    Event,
    event_type=st.just("state_changed"),
    data=st.builds(
        EventData,
        entity_id=entity_ids | entity_ids | entity_ids | texts | st.none(),
        old_state=_maybe(_state_structs),
        new_state=_state_structs | _state_structs | st.none(),
    ),
    time_fired=_maybe(moments),
    context=_maybe(contexts),
)

placements = st.builds(
    Placement,
    device_id=_maybe(texts),
    area_id=_maybe(texts),
    integration=_maybe(texts),
    name=_maybe(texts),
    manufacturer=_maybe(texts),
    model=_maybe(texts),
    sw_version=_maybe(texts),
)

_classes = st.sampled_from(("door", "gas", "temperature", "humidity", "power", "energy", "other"))
_domains = st.sampled_from(
    ("alarm_control_panel", "lock", "climate", "light", "switch", "vacuum", "sensor", "sun")
)

changes = st.builds(
    Change,
    entity_id=entity_ids,
    domain=_domains | texts,
    time_ns=st.integers(-(2**63) + 2, 2**63 - 2),
    state=_maybe(states),
    previous_state=_maybe(states),
    duration_s=_maybe(st.floats(min_value=0, allow_infinity=False)),
    attributes=raw_json(
        st.dictionaries(
            st.text(max_size=4) | st.sampled_from(("x", "x_str", "x_str_str", 'q"', "q'")),
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=4)
            | st.lists(st.text(max_size=4) | st.integers(), max_size=2),
            max_size=4,
        )
    ).map(lambda raw: msgspec.json.format(bytes(raw), indent=-1)),
    device_class=_maybe(_classes | texts),
    unit_of_measurement=_maybe(texts),
    friendly_name=_maybe(texts),
    context=_maybe(contexts),
    placement=placements,
    event_type=st.just("state_changed"),
    backfilled=st.booleans(),
)
