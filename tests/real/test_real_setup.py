"""Set-up and settings in a real browser, against the service as users start it: without any."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.fakes.influx import FakeInflux
from tests.fakes.prefix import below
from tests.fakes.supervisor import INGRESS
from tests.real.browser import DESKTOP, PHONE, THEMES, Tab, Theme, number_in, tab
from tests.real.homes import simulated_home
from tests.real.servers import free_port
from tests.service.process import TOKEN, Service, service
from tests.service.test_home_assistant_app import LAMP, Home, supervised_home

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

SIZES = {"desktop": DESKTOP, "phone": PHONE}
MOST_CLICKS = 3
MOST_S = 60.0

_COUNT_CLICKS = """
  addEventListener("click", ({ isTrusted, detail }) => {
    if (isTrusted && detail > 0) sessionStorage.clicks = Number(sessionStorage.clicks ?? 0) + 1;
  }, true);
"""
_REFUSED = "error: Failed to load resource: the server responded with a status of"


@contextlib.asynccontextmanager
async def _unconfigured(folder: Path, **settings: str) -> AsyncIterator[Service]:
    """Start the service with an empty DATA_DIR and no setting for Home Assistant."""
    async with service(folder, {"BATCH_TIMEOUT": "0.2", **settings}, cwd=folder) as running:
        yield running


def _address(websocket_url: str) -> str:
    """Return the address that a person would enter."""
    return websocket_url.replace("ws://", "http://").removesuffix("/api/websocket")


async def _enter_home(page: Page, url: str, token: str = TOKEN) -> None:
    await page.locator("#home-assistant-url").fill(url)
    await page.get_by_label("Long-lived access token").fill(token)
    await page.get_by_role("button", name="Check and continue").click()


def _stored(page: Page) -> Locator:
    return page.locator("#events-status", has_text=re.compile(r"[\d,]+ events? stored"))


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
async def test_an_empty_folder_leads_to_the_first_stored_event_within_three_clicks(
    browser: Browser, tmp_path: Path, theme: Theme, size: str
) -> None:
    """And within 60 s; the figures are printed. Every step is accessible and fits the window."""
    async with (
        simulated_home(tmp_path) as home_assistant,
        _unconfigured(tmp_path) as running,
        tab(browser, running.url, theme=theme, size=SIZES[size], calm=True) as shown,
    ):
        page = shown.page
        await page.add_init_script(_COUNT_CLICKS)
        begun = time.monotonic()
        await page.goto(running.url)
        await expect(page).to_have_url(re.compile("/setup$"))
        await expect(page.locator("#home-assistant-url")).to_be_focused()
        wrong = await _flaws(shown, "empty")
        await page.keyboard.insert_text(_address(home_assistant.url))
        await page.keyboard.press("Tab")
        await expect(page.get_by_label("Long-lived access token")).to_be_focused()
        await page.keyboard.insert_text(TOKEN)
        await page.get_by_role("button", name="Check and continue").click()
        await expect(page.locator("#home-assistant-status")).to_contain_text("entities")
        await expect(page.get_by_label("Embedded store")).to_be_checked()
        wrong += await _flaws(shown, "database")
        await page.get_by_role("button", name="Start capturing").click()
        await expect(_stored(page)).to_be_visible()
        took_s = time.monotonic() - begun
        await expect(page.locator("#latest li")).not_to_have_count(0)
        wrong += await _flaws(shown, "events")
        clicks = int(await page.evaluate("sessionStorage.clicks"))
        stored = await running.get("/api/v1/events?limit=1")
        await page.get_by_role("link", name="Open the dashboard").click()
        await expect(page.locator("#verdict")).to_have_text("All is well")
        await page.goto(f"{running.url}/setup")
        await expect(page.locator("#line")).to_have_text("Live")

    sys.stdout.write(
        f"\n{size}, {theme}: from an empty folder to the first stored event in {clicks} clicks and"
        f" {took_s:.1f} s\n"
    )
    assert stored["count"] == 1
    assert clicks <= MOST_CLICKS
    assert took_s < MOST_S
    assert wrong == []
    assert shown.complaints == []


def _from_elsewhere(url: str) -> str:
    """Return the address under which the access rules see another machine: not localhost's."""
    return url.replace("127.0.0.1", "box.localhost")


async def _flaws(shown: Tab, step: str) -> list[str]:
    """Return violations of accessibility, and by how much the page is too wide."""
    flaws = await shown.violations()
    if overflow_px := await shown.overflow_px():
        flaws.append(f"{overflow_px} px too wide")
    return [f"{step}: {flaw}" for flaw in flaws]


async def test_the_set_up_can_be_done_by_keyboard_below_a_path(
    browser: Browser, tmp_path: Path
) -> None:
    """Enter sends each step, the focus moves to the next one, and all addresses are relative."""
    async with (
        simulated_home(tmp_path) as home_assistant,
        _unconfigured(tmp_path) as running,
        below("home/ingestion", running.url) as url,
        tab(browser, url) as shown,
    ):
        page = shown.page
        await expect(page).to_have_url(f"{url}setup")
        await expect(page.locator("#home-assistant-url")).to_be_focused()
        await page.keyboard.type(_address(home_assistant.url))
        await page.keyboard.press("Tab")
        await page.keyboard.type(TOKEN)
        await page.keyboard.press("Enter")
        await expect(page.locator("#database-title")).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(page.get_by_label("Embedded store")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(_stored(page)).to_be_visible()
        await page.get_by_role("link", name="Open the dashboard").press("Enter")
        await expect(page).to_have_url(url)
        await expect(page.locator("#line")).to_have_text("Live")

    assert shown.complaints == []


async def test_an_entry_that_fails_its_check_stays_with_the_reason_beside_it(
    browser: Browser, tmp_path: Path
) -> None:
    """Home Assistant's address, its token, and the address of the database."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    async with (
        simulated_home(tmp_path) as home_assistant,
        _unconfigured(tmp_path) as running,
        tab(browser, running.url) as shown,
    ):
        page = shown.page
        url, token = page.locator("#home-assistant-url"), page.locator("#home-assistant-token")
        await page.get_by_role("button", name="Check and continue").click()
        await expect(page.locator("#home-assistant-token-error")).to_have_text(
            "Paste a token of Home Assistant."
        )
        await _enter_home(page, nowhere)
        await expect(page.locator("#home-assistant-url-error")).to_contain_text("cannot be reached")
        await expect(url).to_be_focused()
        await _enter_home(page, _address(home_assistant.url), "w" * 40)
        await expect(page.locator("#home-assistant-url-error")).to_be_hidden()
        await expect(page.locator("#home-assistant-token-error")).to_contain_text("refuses")
        await expect(token).to_have_value("w" * 40)
        violations = await shown.violations()
        await _enter_home(page, _address(home_assistant.url))
        await page.get_by_label("InfluxDB 2").check()
        await page.locator("#database-url").fill(nowhere)
        await page.locator("#database-token").fill("token-of-the-database")
        await page.get_by_role("button", name="Start capturing").click()
        await expect(page.locator("#database-url-error")).to_contain_text("cannot be reached")
        violations += await shown.violations()
        # Another kind and back: nothing is lost.
        await page.get_by_label("Embedded store").check()
        await expect(page.locator("#database-url")).to_be_hidden()
        await page.get_by_label("InfluxDB 2").check()
        await expect(page.locator("#database-url")).to_have_value(nowhere)
        await expect(page.locator("#database-token")).to_have_value("token-of-the-database")
        # Home Assistant can still be changed, and is checked again before anything is saved.
        await page.get_by_role("button", name="Change Home Assistant").click()
        await expect(token).to_have_value(TOKEN)
        assert shown.complaints == []
        await token.fill("w" * 40)
        await page.get_by_label("Embedded store").check()
        await page.get_by_role("button", name="Start capturing").click()
        await expect(page.locator("#home-assistant-token-error")).to_contain_text("refuses")
        await expect(token).to_be_focused()
        health = await running.get("/health")

    assert health["status"] == "setup"
    assert violations == []
    assert shown.complaints == [f"{_REFUSED} 409 (Conflict)"]


async def test_the_set_up_writes_to_a_database_and_never_returns_a_secret(
    browser: Browser, tmp_path: Path
) -> None:
    """The token and the password are in no later response."""
    influx = FakeInflux()
    async with (
        simulated_home(tmp_path) as home_assistant,
        influx.serving(),
        _unconfigured(tmp_path) as running,
        tab(browser, running.url) as shown,
    ):
        page = shown.page
        await _enter_home(page, _address(home_assistant.url))
        await page.get_by_label("InfluxDB 2").check()
        await page.locator("#database-url").fill(influx.url)
        await page.locator("#database-token").fill(influx.token)
        await page.get_by_role("button", name="Start capturing").click()
        await expect(_stored(page)).to_be_visible()
        await expect(page.locator("#latest li")).not_to_have_count(0)
        paths = ("/api/v1/settings", "/api/v1/setup", "/api/v1/diagnostics", "/health")
        bodies = [await running.text(path) for path in paths]
        await page.get_by_role("link", name="Open the dashboard").click()
        await page.get_by_role("link", name="Settings").click()
        token = page.locator("#setting-HOME_ASSISTANT_TOKEN")
        await expect(token).to_have_value("")
        await expect(token).to_have_attribute("placeholder", "Set, not shown")
        await page.locator("#setting-HOME_ASSISTANT_TOKEN-remove").check()
        await expect(page.locator("#settings-changes")).to_have_text("1 change, not saved.")
        await page.get_by_role("button", name="Discard").click()
        await expect(page.locator("#settings-changes")).to_be_empty()

    assert influx.points()
    assert not [body for body in bodies if TOKEN in body or influx.token in body]
    assert shown.complaints == []


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
async def test_the_settings_are_changed_with_errors_beside_their_field(
    browser: Browser, tmp_path: Path, theme: Theme, size: str
) -> None:
    """What the environment sets is read-only, and a secret is never shown."""
    async with (
        simulated_home(tmp_path) as home_assistant,
        service(tmp_path, _given(home_assistant.url), cwd=tmp_path) as running,
        tab(browser, running.url, theme=theme, size=SIZES[size], calm=True) as shown,
    ):
        page = shown.page
        await expect(page.locator("#line")).to_have_text("Live")
        await page.get_by_role("link", name="Settings").click()
        token = page.locator("#setting-HOME_ASSISTANT_TOKEN")
        await expect(token).not_to_be_editable()
        await expect(token).to_have_value("")
        await expect(page.locator("#setting-HOME_ASSISTANT_TOKEN-help")).to_contain_text(
            "Set in the environment"
        )
        await expect(page.get_by_text("Saving restarts the service.")).to_be_visible()
        wrong = await _flaws(shown, "settings")
        await _open_group(page, "BATCH_SIZE")
        await page.locator("#setting-BATCH_SIZE").fill("many")
        await page.get_by_role("button", name="Save and restart", exact=True).click()
        await expect(page.locator("#setting-BATCH_SIZE-error")).to_contain_text("valid integer")
        await expect(page.locator("#setting-BATCH_SIZE")).to_be_focused()
        wrong += await _flaws(shown, "error")
        await page.locator("#setting-BATCH_SIZE").fill("50")
        before = await running.get("/health")
        await page.get_by_role("button", name="Save and restart", exact=True).click()
        await expect(page.locator("#settings-status")).to_have_text(
            "Saved. The service has restarted."
        )
        after = await running.get("/health")
        await expect(page.locator("#setting-BATCH_SIZE")).to_have_value("50")
        await expect(page.locator("#setting-BATCH_SIZE-help")).to_contain_text("Changed here.")
        await page.locator("#setting-BATCH_SIZE").fill("")
        await page.get_by_role("button", name="Discard").click()
        await expect(page.locator("#setting-BATCH_SIZE")).to_have_value("50")
        await expect(page.locator("#line")).to_have_text("Live")

    assert after["uptime_seconds"] < before["uptime_seconds"]
    assert wrong == []
    assert shown.complaints == [f"{_REFUSED} 422 (Unprocessable Entity)"]


def _given(home_assistant: str) -> dict[str, str]:
    return {
        "HOME_ASSISTANT_URL": home_assistant,
        "HOME_ASSISTANT_TOKEN": TOKEN,
        "BATCH_TIMEOUT": "0.2",
    }


async def _open_group(page: Page, name: str) -> None:
    """Open the group of a setting."""
    group = page.locator("#settings details", has=page.locator(f"#setting-{name}"))
    if await group.get_attribute("open") is None:
        await group.locator("summary").click()


async def test_a_database_is_tested_before_the_settings_page_uses_it(
    browser: Browser, tmp_path: Path
) -> None:
    """Nothing changes while it cannot be reached; then the service restarts and writes to it."""
    influx = FakeInflux()
    async with (
        simulated_home(tmp_path) as home_assistant,
        influx.serving(),
        service(tmp_path, _given(home_assistant.url), cwd=tmp_path) as running,
        tab(browser, f"{running.url}/#/settings") as shown,
    ):
        page = shown.page
        await page.get_by_text("Choose a database").click()
        await page.get_by_label("InfluxDB 2").check()
        await page.locator("#database-url").fill(f"http://127.0.0.1:{free_port()}")
        await page.locator("#database-token").fill(influx.token)
        await page.get_by_role("button", name="Test, save and restart").click()
        await expect(page.locator("#database-url-error")).to_contain_text("cannot be reached")
        violations = await shown.violations()
        await page.locator("#database-url").fill(influx.url)
        await page.get_by_role("button", name="Test, save and restart").click()
        await expect(page.locator("#database-status")).to_have_text(
            "Saved. The service has restarted."
        )
        await expect(page.locator("#setting-INFLUXDB_URL")).to_have_value(influx.url)
        await influx.wait_for(lambda influx: len(influx.points()) > 0)

    assert violations == []
    assert shown.complaints == []


async def test_the_app_stores_its_first_event_without_a_click(
    browser: Browser, tmp_path: Path
) -> None:
    """Through ingress, from an empty /data; Swagger UI and the stream are below its path, too."""
    async with supervised_home(tmp_path) as home:
        begun = time.monotonic()
        async with home.app(), tab(browser, f"{home.url}{INGRESS}/", calm=True) as shown:
            page = shown.page
            await expect(page.locator("#line")).to_have_text("Live")
            home.house.set_state(LAMP, "on")
            await expect(page.locator("#latest li")).not_to_have_count(0)
            await expect(page.locator("#tiles .tile").first.locator("b")).not_to_have_text("0")
            took_s = time.monotonic() - begun
            written = await number_in(page, "#tiles b")
            await expect(page.locator("#user")).to_contain_text("Anna Müller")
            violations = await shown.violations()
            await page.goto(f"{home.url}{INGRESS}/setup")
            await expect(page).to_have_url(f"{home.url}{INGRESS}/")
            await page.get_by_role("link", name="API").click()
            await expect(page.locator(".swagger-ui .info .title")).to_contain_text(
                "websocket-ingestion"
            )

    sys.stdout.write(
        "\nThe app: from an empty folder to the first stored event without a click in"
        f" {took_s:.1f} s\n"
    )
    assert written > 0
    assert took_s < MOST_S
    assert violations == []
    assert shown.complaints == []


async def test_the_settings_of_the_app_are_changed_through_ingress(
    browser: Browser, tmp_path: Path
) -> None:
    """The address that the Supervisor gives is read-only; a database of another app is found."""
    async with supervised_home(tmp_path) as home, home.app():
        home.supervisor.apps["a0d7b954_influxdb"] = {
            "state": "started",
            "hostname": "a0d7b954-influxdb",
        }
        async with tab(browser, f"{home.url}{INGRESS}/#/settings") as shown:
            await _change_settings_of_the_app(home, shown.page)

    assert shown.complaints == []


async def _change_settings_of_the_app(home: Home, page: Page) -> None:
    await expect(page.locator("#setting-HOME_ASSISTANT_URL")).not_to_be_editable()
    await page.get_by_text("Choose a database").click()
    await page.get_by_label("InfluxDB 1").check()
    await expect(page.locator("#database-url")).to_have_value("http://a0d7b954-influxdb:8086")
    await _open_group(page, "BATCH_TIMEOUT")
    await page.locator("#setting-BATCH_TIMEOUT").fill("0.5")
    await page.get_by_role("button", name="Save and restart", exact=True).click()
    await expect(page.locator("#settings-status")).to_have_text("Saved. The service has restarted.")
    await expect(page.locator("#setting-BATCH_TIMEOUT")).to_have_value("0.5")
    await expect(page.locator("#line")).to_have_text("Live")
    home.house.set_state(LAMP, "on")
    await page.get_by_role("link", name="Overview").click()
    await expect(page.locator("#latest li")).not_to_have_count(0)


async def test_the_set_up_asks_for_the_api_key_of_the_environment(
    browser: Browser, tmp_path: Path
) -> None:
    """On another machine: nothing else is shown before, and the dashboard does not ask again."""
    key = "correct-horse-battery-staple"
    async with (
        simulated_home(tmp_path) as home_assistant,
        _unconfigured(tmp_path, API_KEY=key) as running,
        tab(browser, _from_elsewhere(running.url)) as shown,
    ):
        page = shown.page
        await expect(page.get_by_label("This service needs its API key")).to_be_focused()
        await expect(page.locator("#stages")).to_be_hidden()
        violations = await shown.violations()
        await page.keyboard.type(key)
        await page.keyboard.press("Enter")
        await _enter_home(page, _address(home_assistant.url))
        await page.get_by_role("button", name="Start capturing").click()
        await expect(_stored(page)).to_be_visible()
        await page.get_by_role("link", name="Open the dashboard").click()
        await expect(page.locator("#line")).to_have_text("Live")

    assert violations == []
    assert shown.complaints == [f"{_REFUSED} 401 (Unauthorized)"]


async def test_another_machine_is_let_in_by_the_link_in_the_log(
    browser: Browser, tmp_path: Path
) -> None:
    """It leaves the address bar, works once, and ends with a key that the page shows."""
    async with (
        simulated_home(tmp_path) as home_assistant,
        _unconfigured(tmp_path) as running,
    ):
        link = re.search(r"/setup\?key=[\w-]+", running.output.read_text())
        assert link is not None
        elsewhere = _from_elsewhere(running.url)
        async with tab(browser, f"{elsewhere}/setup") as refused:
            await expect(refused.page.get_by_role("alert")).to_contain_text("the link")
            await expect(refused.page.locator("#stages")).to_be_hidden()
            violations = await refused.violations()
        async with tab(browser, f"{elsewhere}{link[0]}") as shown:
            page = shown.page
            await expect(page).to_have_url(f"{elsewhere}/setup")
            await _enter_home(page, _address(home_assistant.url))
            await page.get_by_role("button", name="Start capturing").click()
            await expect(_stored(page)).to_be_visible()
            await expect(page.locator("#latest li")).not_to_have_count(0)
            key = await page.get_by_label(re.compile("requires a key")).input_value()
            violations += await shown.violations()
            async with tab(browser, f"{elsewhere}{link[0]}") as other:
                await expect(other.page.locator("#line")).to_have_text("Locked")
            await page.get_by_role("link", name="Open the dashboard").click()
            await expect(page.locator("#line")).to_have_text("Live")

    assert len(key) >= 16
    assert violations == []
    assert shown.complaints == []
