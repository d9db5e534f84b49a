"""What others print is set aside, and shown where it helps."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import logging, os, sys
from pathlib import Path
from sstoken_plugin.base.aside import set_aside
from sstoken_plugin.base.logs import logger

handler = logging.StreamHandler(sys.stdout)
logging.getLogger().addHandler(handler)
print("of others, before")
with set_aside(Path(sys.argv[1]), ("sstoken_plugin",)) as tell:
    print("of others")
    os.system("echo of a child")
    logging.warning("of a library")
    logger("sstoken_plugin.of_a_test").warning("ours to be told\\n[INFO] forged")
    tell("what goes on")
print("ours")
logging.warning("after it")
"""


def run(tmp_path, *shell):
    command = [*shell, sys.executable, "-c", SCRIPT, str(tmp_path / "log")]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONUNBUFFERED": ""})


def test_what_is_printed_inside_is_in_the_file_alone(tmp_path):
    result = run(tmp_path)
    assert result.stdout.splitlines() == ["ours", "after it"], result.stderr
    assert result.stderr.splitlines() == ["ours to be told␊[INFO] forged", "what goes on"]
    lines = (tmp_path / "log").read_text().splitlines()
    for words in ("of others, before", "of others", "of a child", "of a library"):
        assert words in lines


@pytest.mark.parametrize("closed", [1, 2])
def test_a_stream_that_is_closed_costs_nothing(tmp_path, closed):
    result = run(tmp_path, "sh", "-c", f'exec "$@" {closed}>&-', "sh")
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    assert "of a library" in lines
    if closed == 1:
        # What goes to no stdout goes to stderr.
        assert result.stderr.splitlines() == ["ours to be told␊[INFO] forged", "what goes on", "after it"]
    else:
        assert "of a child" in lines
        assert result.stdout.splitlines() == ["ours", "after it"]


def test_a_terminal_keeps_its_progress_bars(tmp_path):
    """Standard error alone is a terminal here."""
    import pty

    ours, theirs = pty.openpty()
    code = SCRIPT.replace('print("of others")', 'print("a bar", file=sys.stderr, flush=True)')
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    assert b"a bar" in os.read(ours, 10_000)
    os.close(ours)


@pytest.mark.parametrize(
    ("error", "is_shown"),
    [
        (RuntimeError("of a library"), True),
        (SystemExit(1), True),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_the_end_of_it_is_shown_where_an_error_needs_it(capfd, error, is_shown):
    from sstoken_plugin.axolotl.cli import MOST_LINES, _others_aside

    folders = []

    def fail():
        with _others_aside() as (folder, _, _):
            folders.append(folder)
            os.write(1, b"".join(b"line %d\n" % number for number in range(100)))
            os.write(1, b"CUDA out of \x1b[2J memory\n")
            raise error

    with pytest.raises(type(error)):
        fail()
    out, err = capfd.readouterr()
    assert "line" not in out
    assert ("CUDA out of ␛[2J memory" in err) == is_shown
    assert f"line {101 - MOST_LINES}" in err if is_shown else "line" not in err
    assert "line 10\n" not in err
    assert not folders[0].exists()


def test_a_sentence_of_ours_needs_no_more(capfd):
    from sstoken_plugin.axolotl.cli import _others_aside
    from sstoken_plugin.selection.config import SSTokenConfig

    def fail():
        with _others_aside():
            os.write(1, b"of others\n")
            SSTokenConfig.from_block({"ratio": 2})

    with pytest.raises(ValueError, match="ratio"):
        fail()
    assert "of others" not in "".join(capfd.readouterr())
