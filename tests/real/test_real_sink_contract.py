"""The contract of the InfluxDB sink, checked with real databases.

A real InfluxDB 2 or 3 is included when INFLUXDB_TEST_URL, _TOKEN, _ORG and _BUCKET are set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import httpx
import msgspec
import pytest

from app.settings import InfluxSettings
from app.sinks.outcomes import Accepted
from tests.contracts.sink import Database, SinkContract, Stored, batch_of, with_first_line
from tests.fakes.faults import FaultServer
from tests.fakes.replies import Reply
from tests.real.influx_1 import Database as Influx1
from tests.real.servers import VICTORIA_RELEASES, Server

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

_NS_PER_MS = 1_000_000
_GIVEN = os.environ.get("INFLUXDB_TEST_URL", "")
_VICTORIA = [f"victoria-{release}-{api}" for release in VICTORIA_RELEASES for api in ("v1", "v2")]
_SERVERS = ["influxdb-1", *_VICTORIA]


class _Exported(msgspec.Struct):
    metric: dict[str, str]
    values: list[float]
    timestamps: list[int]


async def _in_influx_1(url: str, bucket: str, measurement: str) -> list[Stored]:
    rows = Influx1(url, bucket).rows(f'SELECT v, room FROM "{measurement}"')
    return [_stored(row["room"], row["v"], row["time"]) for row in rows]


async def _in_victoria_metrics(url: str, _: str, measurement: str) -> list[Stored]:
    async with httpx.AsyncClient(base_url=url) as client:
        (await client.get("/internal/force_flush")).raise_for_status()
        answer = await client.get("/api/v1/export", params={"match[]": f"{measurement}_v"})
        answer.raise_for_status()
    series = msgspec.json.Decoder(_Exported).decode_lines(answer.content)
    return [
        (row.metric["room"], value, time_ms * _NS_PER_MS)
        for row in series
        for value, time_ms in zip(row.values, row.timestamps, strict=True)
    ]


async def _in_influx_2(url: str, bucket: str, measurement: str) -> list[Stored]:
    flux = (
        f'from(bucket: "{bucket}") |> range(start: 0)'
        f' |> filter(fn: (r) => r._measurement == "{measurement}" and r._field == "v")'
        " |> map(fn: (r) => ({room: r.room, v: r._value, ns: int(v: r._time)}))"
    )
    async with httpx.AsyncClient(base_url=url, headers=_token("Token")) as client:
        answer = await client.post(
            "/api/v2/query",
            params={"org": os.environ["INFLUXDB_TEST_ORG"]},
            json={"query": flux, "dialect": {"annotations": [], "header": True}},
        )
        answer.raise_for_status()
    stored = []
    for table in answer.text.replace("\r\n", "\n").strip().split("\n\n"):
        header, *rows = [row.split(",") for row in table.splitlines()] or [[]]
        named = [dict(zip(header, row, strict=True)) for row in rows]
        stored += [_stored(row["room"], row["v"], row["ns"]) for row in named]
    return stored


async def _in_influx_3(url: str, bucket: str, measurement: str) -> list[Stored]:
    query = f"SELECT room, v, CAST(time AS BIGINT) AS ns FROM {measurement}"
    async with httpx.AsyncClient(base_url=url, headers=_token("Bearer")) as client:
        answer = await client.post(
            "/api/v3/query_sql", json={"db": bucket, "q": query, "format": "json"}
        )
        answer.raise_for_status()
    return [_stored(row["room"], row["v"], row["ns"]) for row in json.loads(answer.content)]


def _token(scheme: str) -> dict[str, str]:
    return {"Authorization": f"{scheme} {os.environ['INFLUXDB_TEST_TOKEN']}"}


def _stored(room: object, value: object, time_ns: object) -> Stored:
    return str(room), float(str(value)), int(str(time_ns))


def _given() -> Database:
    """Return the InfluxDB 2 or 3 that the environment names."""
    ping = httpx.get(f"{_GIVEN}/ping", headers=_token("Bearer"))
    is_3 = ping.headers.get("X-Influxdb-Version", "").lstrip("v").startswith("3.")
    read: Callable[[str, str, str], Awaitable[list[Stored]]] = (
        _in_influx_3 if is_3 else _in_influx_2
    )
    return Database(
        version="v3" if is_3 else "v2",
        url=_GIVEN,
        stored=partial(read, _GIVEN),
        token=os.environ["INFLUXDB_TEST_TOKEN"],
        org=os.environ["INFLUXDB_TEST_ORG"],
        bucket=os.environ["INFLUXDB_TEST_BUCKET"],
    )


@pytest.fixture(params=[*_SERVERS, *(["given"] if _GIVEN else [])])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Yield each database in turn."""
    if request.param == "given":
        yield _given()
    elif request.param == "influxdb-1":
        server: Server = request.getfixturevalue("influx_1")
        yield Database(
            version="v1",
            url=server.url,
            stored=partial(_in_influx_1, server.url),
            wants_credentials=False,
        )
    else:
        _, release, api = request.param.split("-")
        server = request.getfixturevalue("victoria_of")(release)
        yield Database(
            version=api,
            url=server.url,
            stored=partial(_in_victoria_metrics, server.url),
            judges_lines=release == "current",
            judges_types=False,
            forgets=True,
            wants_credentials=False,
        )


class TestRealDatabases(SinkContract):
    """Runs in `make test-real`."""


async def test_an_answer_that_takes_20_s_does_not_time_out(influx_1: Server) -> None:
    """INFLUXDB_TIMEOUT is 30 s by default, so a busy database does not get the batch twice."""
    patience_s = InfluxSettings.model_fields["timeout_s"].default
    database = Database(
        version="v1",
        url=influx_1.url,
        stored=partial(_in_influx_1, influx_1.url),
        wants_credentials=False,
    )
    await with_first_line(database)

    slow = Reply(act="slow", slow_s=20.0, keeps=True)
    async with (
        FaultServer(database.url, slow).serving() as server,
        database.sink(url=server.url, timeout_s=patience_s) as sink,
    ):
        answer = await sink.write(batch_of([database.line(1)]))

    assert answer == Accepted()
    assert await database.holds(0, 1)
