"""A user's way from a YAML to a decision: real commands in a terminal, and their pages in a browser."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from conftest import write

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_terminal(*command, **environment):
    """Run a command whose output goes to a terminal, and return what stands there, escapes included."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "50", **environment}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(list(map(str, command)), stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    found = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:
            # What a terminal says once nobody writes to it any more.
            break
        if not more:
            break
        found += more
    os.close(ours)
    text = found.decode(errors="replace")
    assert process.wait(timeout=60) == 0, text[-3000:]
    return text


def test_from_a_yaml_to_a_decision(config, browser, tmp_path):
    settings = {**config, "val_set_size": 0.2, "eval_steps": 2, "max_steps": 6, "logging_steps": 1}
    yaml = write({**settings, "sstoken": {"ratio": 0.5, "warmup_ratio": 0.3}}, tmp_path)
    ours = (sys.executable, "-m", "sstoken_plugin")

    # Before: what the run will do and cost, and what it would keep.
    shown = in_terminal(*ours, "sstoken-inspect", yaml, "--samples", "3", "--after", "3")
    assert "\x1b[" in shown
    plain = ESCAPES.sub("", shown)
    for part in ("data ", "kept ", "steps ", "history ", "time "):
        assert re.search(rf"^{part}", plain, flags=re.MULTILINE), part
    assert "REL is zero" not in plain
    assert (tmp_path / "out" / "sstoken" / "inspect.html").exists()
    browser.show(tmp_path / "out" / "sstoken" / "inspect.html", 1366, 768)
    assert browser.errors() == []
    assert "after 3 of 6 steps" in browser.text("#verdict")

    # While it trains: where the page will be, what is selected, and numbers in every line.
    log = in_terminal(sys.executable, "-m", "axolotl.cli.train", yaml)
    page = tmp_path / "out" / "sstoken" / "report.html"
    flat = re.sub(r"\s+", "", ESCAPES.sub("", log))
    assert "ssTokenisactive" in flat
    assert flat.count(re.sub(r"\s+", "", str(page))) >= 2
    assert flat.count("'sstoken/selected_ratio'") >= 6

    # After: a verdict first, and the first sample on the first screen.
    for width, height in ((1366, 768), (390, 844)):
        browser.show(page, width, height)
        assert browser.errors() == []
        top = browser.run("return document.getElementById('verdict').getBoundingClientRect().top")
        assert 0 <= top < height / 2
        assert browser.run("return document.documentElement.scrollWidth") <= width
    verdict = browser.text("#verdict")
    assert "One run alone cannot tell." in verdict
    assert "axolotl sstoken-compare" in verdict

    # A plain run beside it, and one page of both.
    (tmp_path / "other").mkdir()
    # Of a run without the plugin its checkpoints are what is left to compare.
    kept = {"plugins": [], "output_dir": str(tmp_path / "plain"), "save_strategy": "steps", "save_steps": 6}
    other = write({**settings, **kept}, tmp_path / "other")
    in_terminal(sys.executable, "-m", "axolotl.cli.train", other)
    both = tmp_path / "both.html"
    told = in_terminal(*ours, "sstoken-report", tmp_path / "out", tmp_path / "plain", "--out", both)
    assert str(both) in ESCAPES.sub("", told).replace("\r\n", "")
    browser.show(both, 1366, 768)
    assert browser.errors() == []
    words = browser.run("return document.body.innerText")
    assert "eval" in words.lower()
    assert "chance" in words
