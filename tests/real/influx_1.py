"""Client that writes to, queries and clears a real InfluxDB 1, independently of the service.

https://archive.docs.influxdata.com/influxdb/v1.6/tools/api/

An InfluxDB 2 has the same routes:
https://docs.influxdata.com/influxdb/v2/reference/api/influxdb-1x/
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import msgspec

from app.model import StoredPoint

_Value = str | float | bool | int | None


class _Series(msgspec.Struct):
    columns: list[str]
    values: list[list[_Value]]
    name: str = ""
    tags: dict[str, str] = {}


class _Result(msgspec.Struct):
    series: list[_Series] = []
    error: str | None = None


class _Answer(msgspec.Struct):
    results: list[_Result]


class Database:
    """One database of an InfluxDB 1, or one bucket of an InfluxDB 2."""

    def __init__(self, url: str, name: str, *, org: str = "", token: str = "") -> None:
        """Name a database on a server; it need not exist yet. InfluxDB 2 has a token."""
        self.name = name
        self.url = url
        self.org = org
        self.token = token
        self._headers = {"Authorization": f"Token {token}"} if token else {}

    def create(self) -> None:
        """Create the database, or empty it; create a bucket that is new."""
        if self.token:
            organizations = httpx.get(
                f"{self.url}/api/v2/orgs", params={"org": self.org}, headers=self._headers
            )
            (organization,) = organizations.raise_for_status().json()["orgs"]
            wanted = {"name": self.name, "orgID": organization["id"]}
            httpx.post(
                f"{self.url}/api/v2/buckets", json=wanted, headers=self._headers
            ).raise_for_status()
            return
        self.run(f'DROP DATABASE "{self.name}"')
        self.run(f'CREATE DATABASE "{self.name}"')

    def write(self, lines: bytes, *, precision: str = "ns") -> None:
        """Write lines as another program would.

        Raises:
            httpx.HTTPStatusError: some lines were refused.
        """
        httpx.post(
            f"{self.url}/write",
            params={"db": self.name, "precision": precision},
            content=lines,
            headers=self._headers,
            timeout=30,
        ).raise_for_status()

    def points(self, query: str = "SELECT * FROM /.*/ GROUP BY *") -> list[StoredPoint]:
        """Return the points of a query, by series and time; it must group by every tag."""
        return [point for series in self._ask(query) for point in _points(series)]

    def rows(self, query: str) -> list[dict[str, _Value]]:
        """Return the result of a query as rows, with the tags it groups by as columns."""
        return [
            {**series.tags, **dict(zip(series.columns, row, strict=True))}
            for series in self._ask(query)
            for row in series.values
        ]

    def count(self, query: str) -> int:
        """Return the single number a query returns; 0 when it returns nothing."""
        values = [row[-1] for series in self._ask(query) for row in series.values]
        assert len(values) <= 1, values
        return int(values[0] or 0) if values else 0

    def run(self, query: str) -> None:
        """Execute a statement that changes something."""
        self._ask(query)

    def _ask(self, query: str) -> list[_Series]:
        answer = httpx.post(
            f"{self.url}/query",
            params={"db": self.name, "epoch": "ns"},
            data={"q": query},
            headers=self._headers,
            timeout=60,
        ).raise_for_status()
        # InfluxDB writes the float -0.0 as `-0`, which a JSON parser reads as the integer 0.
        document = json.loads(answer.content, parse_int=_number)
        (result,) = msgspec.convert(document, _Answer).results
        assert result.error is None, result.error
        return result.series


def _number(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)


def _points(series: _Series) -> Iterator[StoredPoint]:
    for time_ns, *values in series.values:
        assert isinstance(time_ns, int), time_ns
        yield StoredPoint(
            measurement=series.name,
            # InfluxDB reports an empty tag for a series without a tag that others have.
            tags={key: value for key, value in series.tags.items() if value},
            fields={
                key: value
                for key, value in zip(series.columns[1:], values, strict=True)
                if value is not None
            },
            time_ns=time_ns,
        )
