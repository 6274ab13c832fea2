"""A real browser for the dashboard: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from playwright.async_api import Browser, Page, async_playwright, expect

from tests.real.servers import PROJECT, ServerMissing, program

Theme: TypeAlias = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = get_args(Theme)

DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}

_WAIT_MS = 20_000
_WATCH_LONG_TASKS = """
  window.longTasks = [];
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.longTasks.push(entry.duration);
  }).observe({ type: "longtask", buffered: true });
"""


@dataclass(frozen=True, slots=True)
class Tab:
    """A page, with the errors it reported."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, and uncaught exceptions."""

    async def go(self, view: str) -> None:
        """Show a view of the dashboard, as its link does."""
        await self.page.evaluate("(view) => { location.hash = view }", view)

    async def long_tasks_ms(self) -> list[float]:
        """Return the duration of each task that blocked the page for over 50 ms."""
        found: list[float] = await self.page.evaluate("window.longTasks")
        return found

    async def overflow_px(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        wide: int = await self.page.evaluate(
            "Math.max(0, document.documentElement.scrollWidth - window.innerWidth)"
        )
        return wide

    async def violations(self) -> list[str]:
        """Return what axe-core reports for the current view, one line each."""
        # Evaluated, not added as a script: the page's content security policy would block that.
        await self.page.evaluate(axe_core().read_text())
        found: list[str] = await self.page.evaluate(
            """async () => (await axe.run()).violations.flatMap(({ id, nodes }) =>
                 nodes.map((node) => `${id}: ${node.target}: ${node.failureSummary}`))"""
        )
        return found


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run this machine's browser within the block."""
    expect.set_options(timeout=_WAIT_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program("chromium"),
            # Chromium's sandbox needs rights that root in a container does not have.
            args=["--no-sandbox"] if os.geteuid() == 0 else [],
        )
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def tab(
    browser: Browser,
    url: str,
    *,
    theme: Theme = "light",
    size: dict[str, int] = DESKTOP,
    calm: bool = False,
) -> AsyncIterator[Tab]:
    """Open the dashboard in its own session; `calm` requests reduced motion."""
    context = await browser.new_context(
        viewport={"width": size["width"], "height": size["height"]},
        color_scheme=theme,
        reduced_motion="reduce" if calm else "no-preference",
        locale="en-GB",
    )
    try:
        page = await context.new_page()
        page.set_default_timeout(_WAIT_MS)
        shown = Tab(page)
        page.on("console", lambda message: _note(shown, message.type, message.text))
        page.on("pageerror", lambda error: _note(shown, "error", str(error)))
        await page.add_init_script(_WATCH_LONG_TASKS)
        await page.goto(url)
        yield shown
    finally:
        await context.close()


def _note(shown: Tab, kind: str, text: str) -> None:
    if kind in {"error", "warning"}:
        shown.complaints.append(f"{kind}: {text}")


def axe_core() -> Path:
    """Return the script of axe-core, which `make real-servers` fetches from npm.

    Raises:
        ServerMissing: it is not installed.
    """
    folder = Path(os.environ.get("REAL_SERVERS_DIR") or PROJECT / ".real")
    script = folder / "axe-core" / "axe.min.js"
    if not script.exists():
        raise ServerMissing("axe-core is not installed; run: make real-servers")
    return script


async def number_in(page: Page, selector: str) -> int:
    """Return the number that an element shows, without its separators."""
    text = await page.locator(selector).first.inner_text()
    return int(re.sub(r"[^\d]", "", text) or 0)
