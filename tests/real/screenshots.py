"""Takes the screenshots of the dashboard in docs/screenshots: `make screenshots`.

The simulated home first plays several hours through the service, for a history, and then runs
for a few minutes in real time, for an event rate. Each screenshot is taken on a desktop and on a
phone, in the light and the dark theme.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from simulator.fake_home_assistant import FakeHomeAssistant
from simulator.home import SimulatedHome
from tests.real.browser import DESKTOP, PHONE, THEMES, chromium, tab
from tests.real.servers import PROJECT
from tests.service.process import TOKEN, Service, service

FOLDER = PROJECT / "docs" / "screenshots"
VIEWS = {
    "overview": "#/",
    "live": "#/live",
    "home": "#/home",
    "entity": "#/entity/sensor.living_room_climate_temperature",
}

_HISTORY_S = 6 * 3600
_STEP_S = 5
_LIVES_S = 150.0
_SETTLES_MS = 6_000
_SIZES = {"desktop": DESKTOP, "phone": PHONE}


async def main() -> None:
    """Make all screenshots."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        async with _history(Path(folder)) as running:
            await running.stop()
        async with _life(Path(folder)) as running:
            await asyncio.sleep(_LIVES_S)
            await _pictures(running.url)


@contextlib.asynccontextmanager
async def _history(folder: Path) -> AsyncIterator[Service]:
    """Replay the last hours of the home in seconds."""
    moments = [time.time() - _HISTORY_S]
    house = SimulatedHome(folder / "house", clock=lambda: moments[-1])
    async with _served(folder, house) as (home_assistant, running):
        house.wake()
        fired = 0
        for _ in range(_HISTORY_S // _STEP_S):
            moments.append(moments[-1] + _STEP_S)
            for event in house.advance():
                home_assistant.fire(event)
                fired += 1
            await asyncio.sleep(0)
            if home_assistant.pending > 1_000:
                await asyncio.sleep(0.05)
        house.save()
        await running.until(
            "/health", lambda health: health["sinks"][0]["points_written"] >= fired, timeout_s=120
        )
        yield running


@contextlib.asynccontextmanager
async def _life(folder: Path) -> AsyncIterator[Service]:
    """Continue the home in real time."""
    house = SimulatedHome(folder / "house")
    async with _served(folder, house) as (home_assistant, running):
        living = asyncio.create_task(house.run(home_assistant.fire), name="house")
        try:
            yield running
        finally:
            living.cancel()
            await asyncio.wait({living})


@contextlib.asynccontextmanager
async def _served(
    folder: Path, house: SimulatedHome
) -> AsyncIterator[tuple[FakeHomeAssistant, Service]]:
    async with FakeHomeAssistant(house, token=TOKEN) as home_assistant:
        settings = {
            "HOME_ASSISTANT_URL": home_assistant.url,
            "HOME_ASSISTANT_TOKEN": TOKEN,
            "BATCH_TIMEOUT": "1",
        }
        async with service(folder, settings) as running:
            await running.until("/health", lambda health: health["discovery"]["last_refresh"])
            yield home_assistant, running


async def _pictures(url: str) -> None:
    async with chromium() as browser:
        for theme, (place, size) in itertools.product(THEMES, _SIZES.items()):
            async with tab(browser, url, theme=theme, size=size) as shown:
                for name, view in VIEWS.items():
                    await shown.go(view)
                    await shown.page.wait_for_timeout(_SETTLES_MS)
                    file = FOLDER / f"{name}-{place}-{theme}.png"
                    await shown.page.screenshot(path=file)
                    sys.stdout.write(f"{file.relative_to(PROJECT)}\n")


if __name__ == "__main__":
    asyncio.run(main())
