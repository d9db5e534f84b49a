"""Draw the pictures of the documentation from the demo's report page, as a browser shows it.

    scripts/demo.sh && .venv/bin/python scripts/pictures.py

Writes docs/selection.png (README) and docs/report-*.png. Needs Chromium and its driver (scripts/browser.sh).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import open_browser  # noqa: E402

PAGE = ROOT / "outputs" / "cpu-demo" / "sstoken" / "report.html"
# Section of the page, and height of the picture, in CSS pixels.
PICTURES = {
    "report-verdict": ("top", 400),
    "selection": ("samples", 860),
    "report-training": ("training", 760),
    "report-where": ("where", 980),
}
WIDTH = 1240


def main() -> None:
    """Take the pictures."""
    if not PAGE.exists():
        sys.exit(f"{PAGE} is missing; run scripts/demo.sh first.")
    with tempfile.TemporaryDirectory() as folder, open_browser(Path(folder)) as browser:
        driver = browser.driver
        for name, (section, height) in PICTURES.items():
            size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1.5, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get(PAGE.as_uri())
            driver.execute_script(f"document.getElementById('{section}').scrollIntoView({{behavior: 'instant'}})")
            driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
            file = ROOT / "docs" / f"{name}.png"
            driver.save_screenshot(str(file))
            print(f"Written: {file}")


if __name__ == "__main__":
    main()
