"""How long a large report page takes to open, to scroll and to search, in headless Chromium.

    python benchmarks/page.py [--samples 500] [--tokens 2000] [--moments 1]

Makes a page of random numbers and words, opens it in a laptop's window and in a phone's, and prints a line for each:
seconds until it is loaded and its first samples are drawn; milliseconds a frame took in four seconds of scrolling at 60
and at 400 pixels a frame, the median and the longest; milliseconds until a word of the last sample was found. About two
minutes on two cores. Needs Chromium and its driver (scripts/browser.sh).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import Browser, open_browser  # noqa: E402
from reports import drawn, moment, report  # noqa: E402

from sstoken_plugin.report import Moment, Report  # noqa: E402

WINDOWS = {"laptop": (1366, 768), "phone": (390, 844)}
PROMPT = 200
NEEDLE = "needle"
# Pixels a frame: a fast reader, and a hand at the scroll bar.
SPEEDS = (60, 400)
SCROLL = """
const [speed, done] = arguments;
const times = [];
let last = performance.now();
function frame(now) {
  times.push(now - last);
  last = now;
  window.scrollBy({top: speed, behavior: "instant"});
  if (times.length < 240) return requestAnimationFrame(frame);
  times.sort((a, b) => a - b);
  done([times[120], times[239]]);
}
window.scrollTo({top: 0, behavior: "instant"});
requestAnimationFrame(frame);
"""
SEARCH = """
const [word, done] = arguments;
const [box, found] = ["search", "found"].map((id) => document.getElementById(id));
const start = performance.now();
new MutationObserver(() => done(performance.now() - start)).observe(found, {childList: true});
box.value = word;
box.dispatchEvent(new Event("input", {bubbles: true}));
"""


def large_report(samples: int, tokens: int, moments: int) -> Report:
    """Return a report of random numbers and of words of the README."""
    words = (ROOT / "README.md").read_text().split()
    return report(*(_moment(number, samples, tokens, words) for number in range(moments)))


def _moment(number: int, samples: int, tokens: int, words: list[str]) -> Moment:
    records = []
    for sample in range(samples):
        made = drawn(tokens - PROMPT, number * samples + sample, prompt=PROMPT, sample=sample)
        choice = random.Random(sample)
        made["tokens"] = [f" {choice.choice(words)}"[:6] for _ in made["tokens"]]
        made["input_ids"] = [choice.randrange(128_000) for _ in made["tokens"]]
        records.append(made)
    records[-1]["tokens"][-1] = NEEDLE
    return moment(records, f"step {number}")


def measure(browser: Browser, page: Path, width: int, height: int) -> str:
    """Return what one window took, in words."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.driver.get("about:blank")
    start = time.perf_counter()
    browser.driver.get(page.as_uri())
    browser.settle()
    parts = [f"open {time.perf_counter() - start:.1f} s"]
    for speed in SPEEDS:
        median, longest = browser.driver.execute_async_script(SCROLL, speed)
        parts.append(f"a frame at {speed} px {median:.0f} ms, longest {longest:.0f} ms")
    parts.append(f"search {browser.driver.execute_async_script(SEARCH, NEEDLE):.0f} ms")
    return "; ".join(parts)


def main() -> None:
    """Make the page and measure it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("samples", 500), ("tokens", 2000), ("moments", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_browser(Path(folder)) as browser:
        page = browser.write(large_report(asked.samples, asked.tokens, asked.moments))
        print(f"{asked.samples} samples of {asked.tokens} tokens: {page.stat().st_size / 1e6:.1f} MB")
        for name, (width, height) in WINDOWS.items():
            print(f"{name}: {measure(browser, page, width, height)}", flush=True)


if __name__ == "__main__":
    main()
