"""What the inspector prints of a sample."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from conftest import write
from material import run_command

import sstoken_plugin
from sstoken_plugin.base.logs import logger
from sstoken_plugin.base.streams import has_colours
from sstoken_plugin.report.terminal import MOST_TOKENS, SHADES, agreement, legend, total, view


def record(tokens, prompt, selected):
    response = [place >= prompt for place in range(len(tokens))]
    return {
        "sample": 7,
        "tokens": tokens,
        "response": response,
        "score": [place / len(tokens) if there else None for place, there in enumerate(response)],
        "selected": [place in selected for place in range(len(tokens))],
    }


def test_kept_tokens_are_shaded_by_score_and_dropped_ones_struck_out():
    head, text = view(record(["ask ", "one", " two", " three"], 1, {1, 3}))
    assert click.unstyle(head) == "sample 7: 2 of 3 response tokens kept"
    low, high = (click.style(word, bg=shade, fg=16) for word, shade in (("one", SHADES[0]), (" three", SHADES[-1])))
    assert text == f"ask {low}{click.style(' two', dim=True, strikethrough=True)}{high}"


def test_without_colours_signs_tell_kept_tokens_from_dropped_ones():
    sample = record(["ask ", "one", " two", " three"], 1, {1, 3})
    assert list(view(sample, colours=False)) == [
        "sample 7: 2 of 3 response tokens kept", "ask [one]{ two}[ three]",
    ]  # fmt: skip
    assert "\x1b" not in legend(colours=False)
    assert "[ and ]" in legend(colours=False)


@pytest.mark.parametrize(
    ("is_terminal", "environment", "expected"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(is_terminal, environment, expected):
    assert has_colours(SimpleNamespace(isatty=lambda: is_terminal), environment) == expected


def test_text_cannot_act_on_the_terminal():
    _, text = view(record(["\x1b[2J", "\u202eevil", "\r\x07", "a\nb"], 1, {1, 2, 3}))
    plain = click.unstyle(text)
    assert not any(sign in plain for sign in ("\x1b", "\u202e", "\r", "\x07"))
    assert plain == "␛[2J[U+202E]evil␍␇a⏎\nb"
    # No colour goes on over a line break.
    assert all(line.count("\x1b[0m") >= line.count("\x1b[48") for line in text.split("\n"))


def test_one_is_said_in_the_singular():
    one, other = record(["p", "a"], 1, {1}), record(["p", "a"], 1, set())
    assert total([one]) == "1 sample: 1 of 1 response token kept."
    assert agreement([one], [other]).endswith("; 1 token is kept by one alone.")
    assert agreement([one], [one]).endswith("; 0 tokens are kept by one alone.")


def test_long_samples_are_cut_visibly_with_the_response_in_sight():
    lines = [click.unstyle(line) for line in view(record(["w "] * 5000, 3000, {3000}))]
    assert lines[1] == f"[{3000 - MOST_TOKENS // 3:,} tokens before]"
    assert lines[-1] == f"[{5000 - 3000 - MOST_TOKENS + MOST_TOKENS // 3:,} tokens more]"


def test_a_sample_without_scores_or_response_is_shown():
    assert len(list(view(record(["only", " prompt"], 2, set())))) == 2
    constant = record(["a", "b", "c"], 0, {0})
    constant["score"] = [0.0, None, 0.0]
    assert len(list(view(constant))) == 2


def test_agreement():
    one, other = record(["a"] * 4, 0, {0, 1}), record(["a"] * 4, 0, {1, 2})
    assert agreement([one], [other]).startswith("Of the tokens that either keeps both keep 33% (1 of 3); 2 tokens")
    assert "(0 of 0)" in agreement([record([], 0, set())], [record([], 0, set())])


@pytest.mark.parametrize("name", ["a\n[INFO] forged", "a\r\nb", "a\u2028b", "a\x85b", "\x1b[2Jb"], ids=repr)
def test_names_cannot_forge_a_line_of_the_log(caplog, name):
    log = logger("sstoken_plugin.of_a_test")
    with caplog.at_level(logging.WARNING, logger=log.name):
        log.warning("ssToken: %s is loaded.", name)
        log.warning(f"ssToken: {name} is loaded.")
    assert [len(record.getMessage().splitlines()) for record in caplog.records] == [1, 1]
    assert "\x1b" not in caplog.text


def test_every_logger_of_ours_is_such_a_one():
    """By looking at the source, because a logger that is made in another way would be one that nobody tests."""
    package = Path(sstoken_plugin.__file__).parent
    made = [file.name for file in package.rglob("*.py") if "logging.getLogger" in file.read_text(encoding="utf-8")]
    assert made == ["logs.py"]


def test_a_training_loses_no_line_on_a_terminal_of_another_encoding(config, tmp_path):
    """Whoever does not find "ssToken is active" believes that nothing selects."""
    settings = {**config, "max_steps": 1, "output_dir": str(tmp_path / "\U0001f469 out")}
    file = write({**settings, "sstoken": {"warmup_ratio": 0.0}}, tmp_path)
    printed = run_command("python", "-m", "axolotl.cli.train", str(file), PYTHONIOENCODING="cp1252:strict").stdout
    for words in ("ssToken is active: ", "what is selected will be shown in ", "what was selected is shown in "):
        assert words in printed
    assert "Logging error" not in printed


def test_names_in_somebody_elses_files_stay_in_their_line(config, train, caplog, trained_adapter, tmp_path):
    folder = tmp_path / "odd\n[INFO] forged"
    shutil.copytree(trained_adapter, folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "other\n[WARNING] forged too"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    train({**config, "max_steps": 1, "sstoken": {"history": str(folder), "report": False}})
    (line,) = [line for line in caplog.text.splitlines() if "was trained over" in line]
    assert "odd␊[INFO] forged was trained over other␊[WARNING] forged too; it is used over" in line
