"""`sstoken-report` on what real trainings left: one run drawn again, several on one page, and what is damaged."""

import gzip
import json
import math
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import product
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from conftest import run_axolotl
from damage import cut, flipped, written
from material import ROOT
from reports import drawn, moment, record
from reports import report as drawing

from sstoken_plugin.report.page_data import FILE, read_page_data
from sstoken_plugin.report.runs import samples
from sstoken_plugin.report.runs.command import report_command
from sstoken_plugin.report.runs.finished import FinishedRun
from sstoken_plugin.report.runs.page import render_runs

HOSTILE = "<img src=x onerror=alert(1)>&'\u202e"


@pytest.fixture(scope="module")
def trained(small_run, tmp_path_factory):
    """Folders of two runs that select and of a plain training."""
    import axolotl.cli  # noqa: F401

    folder = tmp_path_factory.mktemp("runs")
    base = {**small_run, "val_set_size": 0.2, "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    changes = {
        "many": {"sstoken": {"ratio": 0.6}},
        "few": {"sstoken": {"ratio": 0.3}, "learning_rate": 0.01},
        "plain": {"plugins": []},
    }
    for name, change in changes.items():
        run_axolotl({**base, "output_dir": str(folder / name), **change}, folder)
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    """The same folders, free to be changed."""
    for name in ("many", "few", "plain"):
        shutil.copytree(trained / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def report(*arguments):
    found = CliRunner().invoke(report_command, list(map(str, arguments)))
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return SimpleNamespace(output=found.output, code=found.exit_code)


def refused(*arguments):
    found = report(*arguments)
    assert found.code == 1
    (line,) = found.output.splitlines()
    return line.removeprefix("Error: ")


def log_of(run):
    return read_page_data(run / "sstoken" / FILE).report.log


def edit(file, change):
    content = json.loads(gzip.decompress(file.read_bytes()))
    change(content)
    file.write_bytes(gzip.compress(json.dumps(content).encode()))


def remove_checkpoints(run):
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


class Text(HTMLParser):
    """Which scripts and tags a page has, and its text."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.text, self.pieces = [], "", []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_the_page_of_a_run_is_drawn_again_to_the_byte_and_its_own_is_left_alone(runs):
    own = runs / "many" / "sstoken" / "report.html"
    before = own.read_bytes()
    for run in (runs / "many", runs / "many" / "sstoken"):
        found = report(run)
        redrawn = runs / "many" / "sstoken" / "report-redrawn.html"
        assert found.output == f"Written: {redrawn}\n"
        assert redrawn.read_bytes() == before
        redrawn.unlink()
    assert own.read_bytes() == before


def test_a_checkpoint_and_a_run_that_did_not_end_are_drawn_as_of_then(runs, browser):
    out = runs / "page.html"
    found = report(runs / "many" / "checkpoint-2", "--out", out)
    assert "keeps no tables" in found.output
    browser.show(out)
    assert browser.text("#moment-label") == "step 2 of 4"
    assert "60% of each sample's response tokens" in browser.text("#sentence")
    # Killed before its end.
    (runs / "many" / "sstoken" / FILE).unlink()
    found = report(runs / "many")
    assert "is shown as of checkpoint-4, because it has not come to its end" in found.output
    browser.show(runs / "many" / "sstoken" / "report-redrawn.html")
    assert browser.text("#moment-label") == "step 4 of 4"


def test_a_run_killed_in_the_folder_of_an_earlier_one_is_drawn_once_it_has_a_checkpoint(
    runs, small_run, tmp_path, monkeypatch
):
    from transformers import TrainerCallback, trainer

    class Kill(TrainerCallback):
        at = 0

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == self.at:
                raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", [*trainer.DEFAULT_CALLBACKS, Kill])
    folder = runs / "many"
    page = (folder / "sstoken" / "report.html").read_bytes()
    settings = {**small_run, "output_dir": str(folder), "save_strategy": "steps", "save_steps": 5, "max_steps": 8}
    for step, told in ((3, ""), (6, "is shown as of checkpoint-5, because it has not come to its end")):
        Kill.at = step
        with pytest.raises(KeyboardInterrupt):
            run_axolotl(settings, tmp_path)
        found = report(folder)
        assert found.code == 0
        assert told in found.output
        assert bool(told) == ("Note" in found.output)
        assert (folder / "sstoken" / "report.html").read_bytes() == page


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_several_runs_stand_on_one_page(runs, browser, width, dark):
    out = runs / "page.html"
    report(runs / "many", runs / "few", runs / "plain", "--out", out)
    browser.show(out, width, dark=dark)
    assert browser.errors() == []
    assert browser.requests() == []
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return document.scripts.length") == 0
    assert browser.texts("section > h2") == [
        "Runs", "Evaluation losses", "Settings that differ", "Curves", "The same samples side by side",
        "Settings that do not differ",
    ]  # fmt: skip
    # Wide tables can be scrolled by the keyboard.
    assert browser.run("return [...document.querySelectorAll('.wide')].every(node => node.tabIndex === 0)")
    assert "plain training, without a selection" in browser.texts(".runs li")[2]

    losses = [
        [line["eval_loss"] for line in log_of(runs / name) if "eval_loss" in line][-1] for name in ("many", "few")
    ]
    rows = cells(browser, "#evaluation tr")
    assert [float(row[1]) for row in rows[1:3]] == pytest.approx(losses, abs=1e-3)
    assert float(rows[2][3]) == pytest.approx(losses[1] - losses[0], abs=1e-4)
    assert "cannot tell a difference from chance" in browser.text("#evaluation")
    assert "sstoken-compare" in browser.text("#evaluation")

    differ = {row[0]: row[1:] for row in cells(browser, "#differences tr")}
    assert differ["sstoken.ratio"] == ["0.6", "0.3", "plain training"]
    assert differ["learning_rate"][:2] == ["0.02", "0.01"]
    assert differ.keys() == {"setting", "sstoken.ratio", "learning_rate"}


def cells(browser, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map(row => [...row.children].map(c => c.textContent))"
    return browser.run(script, selector)


def test_a_loss_over_all_tokens_is_that_of_kept_and_dropped_ones_by_their_shares(runs, browser):
    out = runs / "page.html"
    report(runs / "many", runs / "plain", "--out", out)
    browser.show(out)
    line = next(line for line in reversed(log_of(runs / "many")) if "loss" in line)
    share, kept, dropped = (line[f"sstoken/{name}"] for name in ("selected_ratio", "loss_selected", "loss_unselected"))
    state = json.loads((runs / "plain" / "checkpoint-4" / "trainer_state.json").read_text())
    plain = next(line["loss"] for line in reversed(state["log_history"]) if "loss" in line)
    told = browser.texts("#curves .chart")
    (chart,) = [text for text in told if text.startswith("Training loss over all response tokens")]
    ends = chart.partition("At the end: A ")[2].split(", B ")
    assert float(ends[0]) == pytest.approx(share * kept + (1 - share) * dropped, abs=1e-3)
    assert float(ends[1][:6]) == pytest.approx(plain, abs=1e-3)
    (chart,) = [text for text in told if text.startswith("Training loss over kept tokens")]
    assert "B " not in chart


def test_the_share_that_was_trained_on_is_that_of_the_steps_and_not_of_log_lines(runs):
    """As with `logging_first_step`: the first line is of one step, the others of ten."""

    def log(content):
        kept = [(1, 1.0), (11, 0.9), (21, 0.6)]
        content["report"]["log"] = [{"step": step, "loss": 1, "sstoken/selected_ratio": share} for step, share in kept]

    edit(runs / "many" / "sstoken" / FILE, log)
    out = runs / "page.html"
    report(runs / "many", runs / "plain", "--out", out)
    # (1 x 1.0 + 10 x 0.9 + 10 x 0.6) / 21
    assert "trained on 76.2 % of its response tokens" in Text(out).text


def test_the_same_samples_show_which_tokens_each_run_keeps(runs, browser):
    out = runs / "page.html"
    report(runs / "many", runs / "few", "--out", out)
    browser.show(out)
    last = [read_page_data(runs / name / "sstoken" / FILE).report.moments[-1].records for name in ("many", "few")]
    # A run has as many as it has time for.
    shared = [pair for pair in product(*last) if pair[0]["input_ids"] == pair[1]["input_ids"]]
    assert len(shared) >= 4
    samples = browser.run("""
        return [...document.querySelectorAll(".sample .column")].map((column) =>
          [...column.querySelectorAll(".words > .kept, .words > .dropped")].map((node) => {
            const said = node.querySelector(".said").textContent;
            const own = node.cloneNode(true);
            own.querySelector(".said").remove();
            return [said, own.textContent];
          }));
    """)
    assert len(samples) == 2 * len(shared)
    seen = set()
    for number, both in enumerate(shared):
        for records, spans in zip((both, both[::-1]), samples[2 * number : 2 * number + 2], strict=True):
            mine, other = records
            for state, differs in ((True, False), (True, True), (False, False), (False, True)):
                said = f"{'kept' if state else 'dropped'}{', unlike others' if differs else ''}: "
                expected = "".join(
                    text
                    for text, response, own, theirs in zip(
                        mine["tokens"], mine["response"], mine["selected"], other["selected"], strict=True
                    )
                    if response and own is state and (own != theirs) is differs
                )
                assert "".join(text for words, text in spans if words == said) == expected.replace("\n", "↵\n")
                seen |= {said} if expected else set()
    assert len(seen) == 4


@pytest.mark.parametrize("dark", [False, True])
def test_its_text_can_be_read_in_both_themes(runs, browser, dark):
    out = runs / "page.html"
    report(runs / "many", runs / "few", runs / "plain", "--out", out)
    browser.show(out, dark=dark)
    worst = browser.run("""
        const light = (colour) => {
          const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => {
            const share = part / 255;
            return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
          });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = (node) => {
          for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (!colour.endsWith(", 0)") && colour !== "transparent") return colour;
          }
          return "rgb(255, 255, 255)";
        };
        const found = [];
        for (const node of document.querySelectorAll("body *")) {
          const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
          if (!own || !node.checkVisibility()) continue;
          const style = getComputedStyle(node);
          const ink = light(node.closest("svg") ? style.fill : style.color);
          const pair = [ink, light(behind(node))].sort((a, b) => b - a);
          found.push([(pair[0] + 0.05) / (pair[1] + 0.05), node.className, node.textContent.slice(0, 40)]);
        }
        return found.sort((a, b) => a[0] - b[0])[0];
    """)
    assert worst[0] >= 4.5, worst


def test_what_stands_in_data_and_names_is_text(runs, browser):
    hostile = runs / HOSTILE.replace("/", "")
    (runs / "few").rename(hostile)

    def change(content):
        last = content["report"]["moments"][-1]
        last["label"] = HOSTILE
        last["records"][0]["tokens"][-1] = HOSTILE
        content["report"]["settings"][HOSTILE] = HOSTILE
        content["report"]["warnings"] = [HOSTILE]
        content["report"]["log"][-1]["eval_</script>_loss"] = 1
        content["training"][HOSTILE] = [HOSTILE]

    for run in (runs / "many", hostile):
        edit(run / "sstoken" / FILE, change)
    out = runs / "page.html"
    report(runs / "many", hostile, "--out", out)
    page = Text(out)
    assert not {"img", "script"} & set(page.tags)
    assert HOSTILE.replace("\u202e", "[U+202E]") in page.text
    assert "\u202e" not in page.text
    browser.show(out, 390)
    assert browser.errors() == []
    assert browser.run("return document.documentElement.scrollWidth") <= 390


def test_other_tokenizers_are_told_and_their_losses_do_not_compare(runs):
    def other(content):
        for each in content["report"]["moments"]:
            for sample in each["records"]:
                sample["input_ids"] = [token + 1 for token in sample["input_ids"]]

    edit(runs / "few" / "sstoken" / FILE, other)
    out = runs / "page.html"
    report(runs / "many", runs / "few", "--out", out)
    text = Text(out).text
    assert "no sample in common, because their tokenizers differ" in text
    assert "losses, which are per token, do not compare" in text


def test_other_data_are_no_other_tokenizer(runs):
    def fewer(part):
        def change(content):
            for each in content["report"]["moments"]:
                each["records"] = each["records"][part]

        return change

    edit(runs / "many" / "sstoken" / FILE, fewer(slice(0, 2)))
    edit(runs / "few" / "sstoken" / FILE, fewer(slice(2, None)))
    out = runs / "page.html"
    report(runs / "many", runs / "few", "--out", out)
    text = Text(out).text
    assert "no sample in common: their data" in text
    assert "tokenizers" not in text


def document(**changes):
    def change(folder):
        edit(folder / FILE, lambda content: content["report"].update(changes))

    return change


@pytest.mark.parametrize(
    "change",
    [
        cut(FILE, 5000), cut(FILE, 0), flipped(FILE, 3000), written(FILE, b"{}"), written(FILE, gzip.compress(b"[]")),
        written(FILE, gzip.compress(b'{"format": 1, "rep')), written(FILE, gzip.compress(b"[" * 100_000)),
        written(FILE, gzip.compress(b'{"format": 99}')), document(moments=[{}]), document(log=[1]),
        document(breakdowns="x"), document(settings=None), document(ends=[["a"]]),
    ],
)  # fmt: skip
def test_damaged_data_are_one_sentence_and_nothing_is_written(runs, change):
    folder = runs / "many" / "sstoken"
    change(folder)
    remove_checkpoints(folder.parent)
    out = runs / "page.html"
    for others in ([], [runs / "few"]):
        line = refused(runs / "many", *others, "--out", out)
        assert str(folder / FILE) in line
        assert "leave it out" in line
    assert not out.exists()
    assert (folder / "report.html").exists()


def test_the_newer_of_two_runs_in_a_folder_is_shown(runs, small_run, tmp_path):
    """The second leaves no data of a page, and has checkpoints of lower numbers than the first."""
    folder, out = runs / "many", runs / "page.html"
    shutil.copy(folder / "checkpoint-4" / "trainer_state.json", folder)
    saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "logging_steps": 1}
    second = {"selector": "random", "ratio": 0.25, "report": False}
    run_axolotl({**small_run, **saves, "output_dir": str(folder), "sstoken": second}, tmp_path)
    for arguments in ([folder, runs / "few"], [folder / "sstoken", runs / "few"]):
        found = report(*arguments, "--out", out)
        assert f"{folder} has what two runs wrote there; the newer one is shown." in found.output
        overview = Text(out).text
        assert f"3 steps, model {small_run['base_model']}, in {folder}" in overview
    assert "report: false" in refused(folder)


def test_the_page_is_that_of_the_newer_run_beside_checkpoints_of_an_older_one(runs, small_run, tmp_path):
    folder = runs / "many"
    found = report(folder)
    run_axolotl({**small_run, "output_dir": str(folder), "max_steps": 2, "save_strategy": "no"}, tmp_path)
    found = report(folder)
    assert f"{folder} has what two runs wrote there; the newer one is shown." in found.output
    own = folder / "sstoken" / "report.html"
    assert (folder / "sstoken" / "report-redrawn.html").read_bytes() == own.read_bytes()


def test_a_copied_run_is_the_same_whatever_the_ages_of_its_files(runs):
    folder = runs / "many"
    own = (folder / "sstoken" / "report.html").read_bytes()
    for age, name in enumerate(
        (f"sstoken/{FILE}", "checkpoint-4/trainer_state.json", "checkpoint-2/trainer_state.json")
    ):
        os.utime(folder / name, (age, age))
    assert report(folder).output == f"Written: {folder / 'sstoken' / 'report-redrawn.html'}\n"
    assert (folder / "sstoken" / "report-redrawn.html").read_bytes() == own


@pytest.mark.parametrize("damaged", [f"sstoken/{FILE}", "checkpoint-4/trainer_state.json", "checkpoint-4/sstoken"])
def test_where_what_is_newest_is_damaged_the_run_is_shown_as_of_before(runs, damaged):
    folder, out = runs / "many", runs / "page.html"
    page = folder / "sstoken" / FILE
    if page != folder / damaged:
        page.unlink()
    if damaged.endswith("sstoken"):
        cut("moments.json.gz", 300)(folder / damaged)
    else:
        cut(damaged, 50)(folder)
    shown = "checkpoint-4" if page == folder / damaged else "checkpoint-2"
    found = report(folder, "--out", out)
    assert found.code == 0, found.output
    assert f"{folder} is shown as of {shown}, because {folder / damaged}" in found.output
    assert f"step {shown[-1]} of 4" in out.read_text(encoding="utf-8")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
def test_what_may_not_be_read_is_one_sentence(runs):
    """Seen from within the folder: that of all tests is root's alone."""
    shutil.copytree(runs / "few", runs / "closed" / "few")
    (runs / "closed").chmod(0o700)
    runs.chmod(0o777)
    code = (
        "import os, sys; from click.testing import CliRunner; "
        "from sstoken_plugin.report.runs.command import report_command as command; "
        # All modules that it needs, which root alone may be able to read.
        "CliRunner().invoke(command, ['few', 'many', '--out', 'page.html']); os.setuid(65534); "
        "found = CliRunner().invoke(command, sys.argv[1:]); print(found.output, repr(found.exception))"
    )
    for arguments, told, ended in (
        (["closed/few"], "RUN: closed/few cannot be read (PermissionError", "SystemExit(1)"),
        (["few", "--out", "closed/a.html"], "--out: closed/a.html cannot be written (PermissionError", "SystemExit(1)"),
        ([".", "--out", "a.html"], "closed is left out: [Errno 13] Permission denied", "None"),
    ):
        found = subprocess.run([sys.executable, "-c", code, *arguments], cwd=runs, capture_output=True, text=True)
        assert told in found.stdout, found.stdout + found.stderr
        assert found.stdout.rstrip().endswith(ended)


def test_a_damaged_run_in_a_folder_of_runs_is_left_out_and_told(runs, browser):
    cut(FILE, 5000)(runs / "few" / "sstoken")
    remove_checkpoints(runs / "few")
    out = runs / "page.html"
    found = report(runs, "--out", out)
    assert "few is left out" in found.output
    assert "few is left out" in Text(out).text
    assert "many" in Text(out).text


@pytest.mark.parametrize(
    "content", [b"", b'{"log_history": [', b"[]", b'{"log_history": 3}', b"\xff\xfe", b'{"a": NaN}']
)
def test_a_damaged_state_of_a_plain_training_is_one_sentence(runs, content):
    shutil.rmtree(runs / "plain" / "checkpoint-2")
    file = runs / "plain" / "checkpoint-4" / "trainer_state.json"
    file.write_bytes(content)
    assert "trainer_state.json" in refused(runs / "many", runs / "plain", "--out", runs / "page.html")


def test_a_run_without_a_page_in_whose_folder_trainers_state_lies_shows_its_curves(runs):
    """LLaMA-Factory saves the state there, and a run of several epochs its cache of losses."""
    run = runs / "many"
    shutil.copy(run / "checkpoint-2" / "trainer_state.json", run)
    (run / "sstoken" / FILE).unlink()
    (run / "sstoken" / "history").mkdir(exist_ok=True)
    found = report(run, runs / "plain", "--out", runs / "page.html")
    assert found.code == 0, found.output


def test_a_damaged_checkpoint_is_one_sentence(runs):
    folder = runs / "many" / "checkpoint-2"
    for name in ("moments.json.gz", "page.json.gz", "state.json"):
        copy = runs / name
        shutil.copytree(folder, copy)
        cut(name, 300)(copy / "sstoken")
        assert name in refused(copy)


def test_what_is_no_run_is_one_sentence_with_the_way_out(runs, monkeypatch):
    monkeypatch.chdir(runs)
    (runs / "empty").mkdir()
    (runs / "file").write_text("")
    assert "there is no folder 'nowhere'" in refused("nowhere")
    assert "is a file" in refused("file")
    assert "holds no run" in refused("empty")
    assert "same run" in refused("many", "many/sstoken")
    assert "nothing to show of it alone" in refused("plain")
    assert "is a folder" in refused("many", "--out", "empty")
    assert "nothing is no name of a page" in refused("many", "--out", "")
    assert "cannot be read (OSError: [Errno 36] File name too long" in refused("a" * 300)
    assert "cannot be written (OSError: [Errno 36] File name too long" in refused("many", "--out", "a" * 300)
    assert "end in .html" in refused("many", "--out", "config.yaml")
    # As report: false leaves it.
    for folder in (runs / "few").rglob("sstoken"):
        shutil.rmtree(folder)
    assert "report: false" in refused("few")
    assert report("few", "many").code == 0
    assert "Fewer than two of the runs have samples" in Text(runs / "sstoken-report.html").text


def test_more_runs_than_can_be_told_apart_are_refused(runs):
    for number in range(12):
        shutil.copytree(runs / "plain", runs / f"plain-{number}")
    assert "12 at most" in refused(runs)
    shutil.rmtree(runs / "few"), shutil.rmtree(runs / "plain"), shutil.rmtree(runs / "plain-11")
    out = runs / "page.html"
    assert report(runs, "--out", out).code == 0
    assert Text(out).tags.count("polyline") > 12


def test_a_file_of_somebody_else_is_overwritten_only_if_asked(runs, monkeypatch):
    monkeypatch.chdir(runs)
    file = runs / "sstoken-report.html"
    assert report("many", "few").output == "Written: sstoken-report.html\n"
    # Its own one is.
    assert report("few", "many").code == 0
    file.write_text("<p>mine</p>")
    assert "--out" in refused("many", "few")
    assert file.read_text() == "<p>mine</p>"
    assert report("many", "few", "--out", file).code == 0
    assert "mine" not in file.read_text()


def test_little_that_is_known_of_runs_is_a_page_too(browser, tmp_path):
    nothing = record([], response=[])
    long = drawn(9000, 1, prompt=2000)
    logs = [[], [{"step": 1, "eval_loss": math.nan}, {"eval_loss": 1.0}], [{"step": 3, "loss": 1e300}] * 2]
    reports = [drawing(nothing), drawing(moment([])), drawing(moment([nothing, record(["p", "a"]), long])),
               drawing(moment([long, record(["p", "a"], response=[False, False])]))]  # fmt: skip
    known = [FinishedRun(tmp_path, tmp_path, log, name=f"log {place}") for place, log in enumerate(logs)]
    known += [FinishedRun(tmp_path, tmp_path, [], report, name=f"report {n}") for n, report in enumerate(reports)]
    for some in (known[:2], known[1:5], known):
        file = tmp_path / "page.html"
        file.write_text(render_runs(some), encoding="utf-8")
        browser.show(file, 390)
        assert browser.errors() == []
        assert browser.run("return document.documentElement.scrollWidth") <= 390
    assert "tokens left out" in browser.text("#samples")
    assert "nan" not in browser.text("main").lower()


def test_one_is_said_in_the_singular(tmp_path, monkeypatch):
    own = record(["p", "a", "b", "c"])
    other = {**own, "selected": [False, False, True, True]}
    log = [{"step": 1, "loss": 1.0, "sstoken/selected_ratio": 0.9999}]
    known = [
        FinishedRun(tmp_path, tmp_path, log, drawing(made, settings={"ratio": 0.6}), name=name)
        for name, made in (("a", own), ("b", other))
    ]
    text = render_runs(known)
    assert "1 token on which the runs do not agree" in text
    assert "A and B, 1 sample: " in text
    assert "1 token is kept by one alone" in text
    assert ", 1 step, " in text
    assert "<summary>1 setting</summary>" in text
    # What is nearly all is not called all.
    assert "trained on 99.99 % of its response tokens" in text
    monkeypatch.setattr(samples, "_MOST_CHARACTERS", 1)
    assert "1 more sample is left out" in render_runs(known)


@pytest.mark.parametrize("coding", ["ascii", "utf-8"])
def test_it_runs_where_axolotl_is_not_and_on_any_terminal(runs, coding):
    (runs / "many").rename(runs / "größe")
    program = (
        "import sys, runpy; sys.modules['axolotl'] = None; runpy.run_module('sstoken_plugin', run_name='__main__')"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, "sstoken-report", "größe", "few"],
        cwd=runs, capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": coding, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr.decode()
    assert found.stdout == b"Written: sstoken-report.html\n"
    assert "größe" in (runs / "sstoken-report.html").read_text(encoding="utf-8")
    shutil.rmtree(runs / "größe" / "sstoken")
    found = subprocess.run(
        [sys.executable, "-c", program, "sstoken-report", "größe/empty"],
        cwd=runs, capture_output=True, env={**os.environ, "PYTHONIOENCODING": coding, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.returncode == 1
    assert b"Traceback" not in found.stderr
    # Click writes UTF-8 where a terminal claims to have ASCII alone.
    assert "größe" in found.stderr.decode()
