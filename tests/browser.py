"""A real browser for the tests of the report page: headless Chromium, one for the whole run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from sstoken_plugin.report import Report, render

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

# The browser mixes the colours itself: backgrounds from the root on, then the text.
CONTRASTS = """
const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
const known = new Map();
function pixel(colours) {
  const key = colours.join("|");
  if (!known.has(key)) {
    context.fillStyle = "white";
    context.fillRect(0, 0, 1, 1);
    for (const colour of colours) {
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
    }
    known.set(key, [...context.getImageData(0, 0, 1, 1).data].slice(0, 3));
  }
  return known.get(key);
}
const light = (rgb) => rgb.map((part) => part / 255)
  .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
  .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
const found = new Set();
for (const node of document.body.querySelectorAll("*")) {
  if (!node.checkVisibility({visibilityProperty: true}) || node.matches(":disabled, script, style")) continue;
  const style = getComputedStyle(node);
  const texts = [...node.childNodes].filter((child) => child.nodeType === 3 && child.data.trim());
  const colours = texts.length ? [[node.closest("svg") ? style.fill : style.color, texts[0].data.trim()]] : [];
  for (const part of ["::before", "::after"]) {
    const drawn = getComputedStyle(node, part);
    if (!["none", "normal", '""'].includes(drawn.content)) colours.push([drawn.color, drawn.content]);
  }
  if (!colours.length) continue;
  const grounds = [];
  for (let up = node; up; up = up.parentElement) grounds.unshift(getComputedStyle(up).backgroundColor);
  for (const [colour, text] of colours) {
    const [one, other] = [light(pixel(grounds)), light(pixel([...grounds, colour]))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < arguments[0]) found.add(`${ratio.toFixed(2)} ${node.className?.baseVal ?? node.className}: ${text}`);
  }
}
return [...found];
"""


class Browser:
    """Opens reports from files and looks at what they became."""

    def __init__(self, driver: Any, folder: Path):
        self.driver = driver
        self.run = driver.execute_script
        self._folder = folder
        self._count = 0

    def write(self, report: Report) -> Path:
        """Write a report to a file of its own."""
        self._count += 1
        file = self._folder / f"report-{self._count}.html"
        file.write_text(render(report), encoding="utf-8")
        return file

    def open(self, report: Report, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        """Open a report in a window of this size, in CSS pixels."""
        self.show(self.write(report), width, height, dark=dark)

    def show(self, file: Path, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        """Open a page in a window of this size, in CSS pixels."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(file.as_uri())
        self.settle()

    def settle(self) -> None:
        """Wait until the page has drawn what it was told."""
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    def set(self, slider: str, value: float) -> None:
        """Move a slider as a hand does."""
        self.run(
            "const node = document.getElementById(arguments[0]); node.value = arguments[1];"
            "node.dispatchEvent(new Event('input', {bubbles: true}))",
            slider,
            value,
        )
        self.settle()

    def wait_until(self, script: str) -> None:
        """Wait until a script returns something true."""
        WebDriverWait(self.driver, 20, poll_frequency=0.02).until(lambda _: self.run(script))

    def wait_for(self, selector: str, text: str) -> None:
        """Wait until the first element that a CSS selector finds has a text."""
        WebDriverWait(self.driver, 20, poll_frequency=0.02).until(lambda _: self.text(selector) == text)

    def click(self, selector: str) -> None:
        """Click the first element that a CSS selector finds, where it is on the screen."""
        element = self.driver.find_element("css selector", selector)
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        self.settle()
        element.click()
        self.settle()

    def text(self, selector: str) -> str:
        """Return the text of the first element that a CSS selector finds."""
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector: str) -> list[str]:
        """Return the text of every element that is on show."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].filter(n => n.checkVisibility())"
            ".map(n => n.textContent)"
        )
        return self.run(script, selector)

    def kept(self) -> list[str]:
        """Return which of its shown response tokens each sample keeps, as in "1011"."""
        return self.run("""
            // Off the screen nothing is painted, but for a print.
            window.dispatchEvent(new Event("beforeprint"));
            return [...document.querySelectorAll(".sample")].map((sample) =>
              [...sample.querySelectorAll(".t")].map((t) => (t.classList.contains("kept") ? "1" : "0")).join(""));
        """)

    def poor_contrasts(self, least: float = 4.5) -> list[str]:
        """Return the texts on show, signs that the style draws included, whose contrast (WCAG 2) is below `least`."""
        found: list[str] = self.run(CONTRASTS, least)
        return found

    def names(self) -> list[str]:
        """Return what a screen reader says of each thing on the page, its role last."""
        nodes = self.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        return [
            f"{node['name']['value']} ({node['role']['value']})" for node in nodes if node.get("name", {}).get("value")
        ]

    def errors(self) -> list[str]:
        """Return what the page wrote to the console since it was opened or last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses asked for since the page was opened, its own file aside."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        entries = self.run("return performance.getEntriesByType('resource').map(e => e.name)")
        return [url for url in sent + entries if url != self.driver.current_url.partition("#")[0]]


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Start a browser that keeps its files in a folder. Where there is none the tests fail, lest nobody notices."""
    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, CHROMIUM)), "")
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver_file = shutil.which("chromedriver")
    if driver_file is None or not options.binary_location:
        pytest.fail("Chromium and its driver are missing; scripts/browser.sh installs them.")
    # Selenium would look for a newer driver on the network, and tell of its use.
    os.environ.update(SE_OFFLINE="true", SE_AVOID_STATS="true")
    driver = webdriver.Chrome(options=options, service=Service(driver_file))
    driver.set_script_timeout(20)
    try:
        yield Browser(driver, folder)
    finally:
        driver.quit()
