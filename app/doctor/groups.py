"""Runs a group of checks within its time, and names what none of them may show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from app.doctor.findings import Finding, failed, not_tried
from app.sinks.influxdb.dialects import Target, dialect_for

if TYPE_CHECKING:
    from app.settings import Settings


async def bounded(
    names: Sequence[str], looking: AsyncGenerator[Finding, None], within_s: float
) -> list[Finding]:
    """Return a finding for each name; after the last one found, why the rest was not tried."""
    found: list[Finding] = []
    try:
        async with asyncio.timeout(within_s), aclosing(looking):
            async for finding in looking:
                found.append(finding)  # noqa: PERF401 - what was found before the timeout counts
    except TimeoutError:
        what = f"It took longer than {within_s:g} s."
        found.append(failed(names[len(found)], what, "Find out why it hangs, then try again."))
    last = found[-1].name.replace("_", " ")
    found += [not_tried(name, f"the check of {last} failed") for name in names[len(found) :]]
    return found


def secrets_of(chosen: Settings) -> list[str]:
    """Return everything that must never be shown, in every form in which it may appear."""
    influx, api_key = chosen.influx, chosen.serving.api_key
    password = influx.password.get_secret_value()
    basic = dialect_for("v1", Target(bucket="", username=influx.username, password=password))
    urls = (chosen.home_assistant.url, influx.url, chosen.discovery.data_api_url)
    in_urls = [urlsplit(url).password or "" for url in urls if url is not None]
    secrets = (
        chosen.home_assistant.token.get_secret_value(),
        influx.token.get_secret_value(),
        password,
        basic.credentials.get("Authorization", "").partition(" ")[2],
        "" if api_key is None else api_key.get_secret_value(),
        chosen.discovery.data_api_key.get_secret_value(),
        *chosen.home_assistant.headers_by_name.values(),
        *influx.headers_by_name.values(),
        *in_urls,
        *map(unquote, in_urls),
    )
    return [secret for secret in secrets if secret]
