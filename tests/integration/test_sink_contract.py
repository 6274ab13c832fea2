"""The contract of the InfluxDB sink, asked of a fake of each version."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contracts.sink import Database, SinkContract, Stored
from tests.fakes.influx import FakeInflux

_SERVERS = {
    "v1": lambda: FakeInflux(version="v1", token="", username="häuschen", password="ge:heim"),
    "v2": lambda: FakeInflux(version="v2"),
    "v3": lambda: FakeInflux(version="v3"),
}


@pytest.fixture(params=_SERVERS)
async def database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """Each fake in turn."""
    server = _SERVERS[request.param]()

    async def stored(bucket: str, measurement: str) -> list[Stored]:
        assert bucket in server.buckets
        return [
            (point.tags["room"], float(point.fields["v"]), point.time_ns)
            for point in server.points()
            if point.measurement == measurement
        ]

    async with server.serving():
        yield Database(
            version=server.version,
            url=server.url,
            stored=stored,
            token=server.token,
            org=server.org,
            username=server.username,
            password=server.password,
        )


class TestFakes(SinkContract):
    """In `make test`."""
