"""Finds a bucket of an InfluxDB 2 for InfluxQL.

Flux is not used: a query over shards that have different types of a field returns the values up to
the first change of type, drops the others without an error, and counts as many.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from app.commands.copy.influxql_reader import Location
from app.runtime.errors import DatabaseRefused, QueryFailed
from app.sinks.influxdb.http import Request
from app.sinks.influxdb.queries import QueryClient

_ID = re.compile("[0-9a-f]{16}")


async def location_of_bucket(client: QueryClient) -> Location:
    """Return the database and retention policy that InfluxQL has for the client's bucket.

    InfluxDB 2.4 and newer make them from the name of each bucket.

    Raises:
        QueryFailed: the database is unavailable.
        DatabaseRefused: there is none, or it may stand for another bucket.
    """
    target = client.target
    org = {"orgID" if _ID.fullmatch(target.org) else "org": target.org}
    match await _listed(client, "buckets", name=target.bucket, **org):
        case [{"id": str(bucket_id), "orgID": str(org_id)}]:
            pass
        case _:
            raise DatabaseRefused(f"there is no bucket {target.bucket!r} that the token may read")
    # InfluxQL reads the organization that the token was made in, whatever is requested.
    if len(await _listed(client, "buckets", name=target.bucket)) > 1:
        raise DatabaseRefused(
            f"the token may read a bucket {target.bucket!r} of several organizations: use one that"
            f" may only read that of {target.org!r}"
        )
    for mapping in await _listed(client, "dbrps", orgID=org_id, bucketID=bucket_id):
        database, policy = str(mapping["database"]), str(mapping["retention_policy"])
        same = await _listed(client, "dbrps", orgID=org_id, db=database, rp=policy)
        if [each["bucketID"] for each in same] == [bucket_id]:
            return Location(database, policy)
    raise DatabaseRefused(
        f"InfluxQL has no database for the bucket {target.bucket!r}. Create a mapping, which"
        f" changes no data: influx v1 dbrp create --bucket-id {bucket_id} --db copied --rp"
        f" {bucket_id}"
    )


async def _listed(client: QueryClient, kind: str, **query: str) -> Sequence[Mapping[str, object]]:
    reply = await client.body(Request(path=f"/api/v2/{kind}", query=query))
    try:
        listed = json.loads(reply)["content" if kind == "dbrps" else kind]
    except (ValueError, KeyError, TypeError) as exc:
        raise QueryFailed(f"the answer of /api/v2/{kind} is not a list of {kind}") from exc
    return list(listed)
