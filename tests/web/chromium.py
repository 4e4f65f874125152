"""Debian's Chromium, driven by Playwright, with an ear for everything that goes wrong in a page."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

WIDE, NARROW = (1280, 800), (390, 844)
# Networks of other tests come and go on this machine meanwhile: Chromium then breaks off what is on its way to any server.
NETWORK_CHANGED = "net::ERR_NETWORK_CHANGED"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window; skips the test where none is installed."""
    binary = shutil.which("chromium")
    if binary is None:
        pytest.skip("chromium is not installed; run `make packages`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=binary, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One visitor's tab on a server, logged in unless said otherwise. `complaints`: errors and violations in it."""

    def __init__(self, browser: Browser, url: str, *, size=WIDE, theme: Literal["light", "dark"] = "light") -> None:
        width, height = size
        self.url = url
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=theme,
            reduced_motion="reduce",
            locale="en-GB",
            ignore_https_errors=True,  # a control plane of the lab has a certificate authority of its own
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.complaints: list[str] = []
        self.page.on("console", lambda m: self._hear(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self._hear(str(error)))
        self.page.on("response", lambda r: self._hear(f"{r.status} {r.url}") if r.status >= 400 else None)
        # The browser tells a violation of the content security policy to the page; a console line may be filtered.
        self.page.add_init_script(
            "document.addEventListener('securitypolicyviolation', e => console.error('policy: ' + e.violatedDirective))"
        )

    def _hear(self, complaint: str) -> None:
        if NETWORK_CHANGED not in complaint:
            self.complaints.append(complaint)

    def go(self, path: str) -> None:
        """Load a page."""
        try:
            self.page.goto(self.url + path)
        except Error as err:
            if NETWORK_CHANGED not in err.message:
                raise
            self.page.goto(self.url + path)

    def open(self, path: str = "/ui/") -> None:
        """Go there and wait until the page is live."""
        self.go(path)
        self.page.locator("[data-connection='live']").wait_for()

    def log_in(self, user: str, password: str, path: str = "/ui/") -> None:
        """Through the form, as a person does."""
        self.go(path)
        self.page.get_by_label("User").fill(user)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Log in").click()
        self.page.locator("[data-connection='live']").wait_for()

    def overflow_px(self) -> int:
        """How far the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
