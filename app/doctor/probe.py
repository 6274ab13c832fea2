"""A point of our own in the database: written, queried and deleted, in each dialect.

It has its own measurement, so that no query for the home finds it.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus

from app.model import Row, moment_of
from app.sinks.batches import Batch, whole_rows
from app.sinks.influxdb.dialects import Target, Version
from app.sinks.influxdb.http import Reply, Request, parsed

MEASUREMENT = "websocket_ingestion_doctor"
_JSON = {"Content-Type": "application/json", "Accept": "application/json"}
_A_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Probe:
    """One point, identified by its time."""

    time_ns: int

    def batch(self) -> Batch:
        """Return it as a sink takes it."""
        line = f"{MEASUREMENT} probe=1 {self.time_ns}\n".encode()
        return whole_rows([Row(1, 1, gzip.compress(line), self.time_ns / 1e9)])

    def question(self, version: Version, target: Target) -> Request:
        """Return the query for it."""
        match version:
            case "v1":
                sought = f'SELECT probe FROM "{MEASUREMENT}" WHERE time = {self.time_ns}'  # noqa: S608 - ours, and a number
                query = {"db": target.bucket, "epoch": "ns", "q": sought}
                return Request(path="/query", query=query)
            case "v2":
                flux = (
                    f"from(bucket: {json.dumps(target.bucket, ensure_ascii=False)})"
                    f" |> range(start: time(v: {self.time_ns}), stop: time(v: {self.time_ns + 1}))"
                    f' |> filter(fn: (r) => r._measurement == "{MEASUREMENT}")'
                )
                return Request(
                    method="POST",
                    path="/api/v2/query",
                    query={"org": target.org},
                    headers={**_JSON, "Accept": "application/csv"},
                    body={"query": flux, "type": "flux"},
                )
            case "v3":
                moment = f"to_timestamp_nanos({self.time_ns})"
                sought = f"SELECT probe FROM {MEASUREMENT} WHERE time = {moment}"  # noqa: S608 - ditto
                query = {"db": target.bucket, "format": "json", "q": sought}
                return Request(path="/api/v3/query_sql", query=query)

    def removal(self, version: Version, target: Target) -> Request | None:
        """Return the request that deletes every probe; None where points cannot be deleted."""
        match version:
            case "v1":
                query = {"db": target.bucket, "q": f'DELETE FROM "{MEASUREMENT}"'}  # noqa: S608 - ours
                return Request(method="POST", path="/query", query=query)
            case "v2":
                until = moment_of(self.time_ns) + _A_MINUTE
                body: dict[str, object] = {
                    "start": "1970-01-01T00:00:00Z",
                    "stop": until.isoformat().replace("+00:00", "Z"),
                    "predicate": f'_measurement="{MEASUREMENT}"',
                }
                query = {"org": target.org, "bucket": target.bucket}
                return Request(
                    method="POST", path="/api/v2/delete", query=query, headers=_JSON, body=body
                )
            case "v3":
                return None


def is_found(reply: Reply) -> bool | None:
    """Whether the answer to the query contains the point; None when the query failed."""
    if reply.status != HTTPStatus.OK:
        return None
    match parsed(reply):
        case {"results": [{"series": [{"name": name}, *_]}, *_]}:
            return bool(
                name == MEASUREMENT
            )  # VictoriaMetrics lists databases, whatever it is asked
        case {"results": [{"error": _}, *_]}:
            return None
        case {"results": [_, *_]}:
            return False
        case list() as rows:
            return bool(rows)
        case _:
            return MEASUREMENT.encode() in reply.body


def is_removed(reply: Reply) -> bool:
    """Whether the response to the removal reports success."""
    # A statement of InfluxQL that failed is answered with 200 as well.
    is_good = reply.status in {HTTPStatus.OK, HTTPStatus.NO_CONTENT}
    return is_good and b'"error"' not in reply.body
