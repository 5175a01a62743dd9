"""Debian's Chromium, headless, for the tests that open pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
BROWSER_TEST = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which(CHROMIUM) and shutil.which(DRIVER)), reason="needs Debian's browser: apt-get install chromium chromium-driver"
    ),
]


@contextmanager
def open_browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """A browser of 1400 × 1000 pixels that logs what its console says and what it asks for, with an empty profile in a folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic", "dev-shm-usage")
    for argument in ("headless", "no-sandbox", "no-first-run", "window-size=1400,1000", f"user-data-dir={profile}"):
        options.add_argument(f"--{argument}")
    for feature in quiet:
        options.add_argument(f"--disable-{feature}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()
