"""What is refused and warned of in prepared data, with the number of samples concerned."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from datasets import Dataset

from sstoken_plugin.axolotl.run import NAMES
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.turns import EndTokens
from sstoken_plugin.training import survey
from sstoken_plugin.training.survey import Survey, refuse_rows

ENDS = EndTokens({2})


def row(ids, labels=None, **others):
    return {"input_ids": ids, "labels": [-100, *ids[1:]] if labels is None else labels, **others}


def look(*rows):
    return Survey.of(Dataset.from_list(list(rows)), ENDS)


def test_rows_are_counted_by_what_is_odd_in_them():
    clean = row([5, 6, 2], attention_mask=[1, 1, 1])
    right = row([5, 6, 2, 2, 2], attention_mask=[1, 1, 1, 0, 0])
    left = row([2, 2, 5, 6], [2, 2, -100, 6], attention_mask=[0, 0, 1, 1])
    shifted = row([5, 6, 2], [6, 2, -100], attention_mask=[1, 1, 1])
    found = look(clean, right, left, shifted, clean)
    assert (found.rows, found.labelled_padding, found.relabelled, found.ends) == (5, 2, 1, {2})
    padding, relabelled = found.warnings(NAMES)
    assert "2 of 5 samples" in padding
    assert "datasets" in padding
    assert "1 of 5 samples" in relabelled


def test_clean_data_gives_no_warning():
    found = look(row([5, 6, 7]), row([5, 6, 2]))
    assert found.warnings() == []
    assert found.ends == {2}
    # An end that is not labelled, or stands inside of an answer, is none that could be kept.
    assert look(row([5, 6, 2], [-100, 6, -100]), row([5, 2, 6])).ends == frozenset()


def test_the_share_that_short_answers_keep_is_known_before_training():
    # 0.6 of 2, 5 and 5 tokens are 2, 3 and 3; with two ends of turns at least 4 are kept.
    found = look(row([1, 5, 6]), row([1, 5, 6, 7, 8, 9]), row([1, 5, 2, 7, 8, 2], [-100, 5, 2, -100, 8, 2]))
    assert found.kept_share(SSTokenConfig(ratio=0.6, keep_eos=False)) == pytest.approx((2 + 3 + 3) / 11)
    assert found.kept_share(SSTokenConfig(ratio=0.6)) == pytest.approx((2 + 3 + 4) / 11)
    assert look(row([5, 6], [-100, -100])).kept_share(SSTokenConfig()) is None


def test_what_a_threshold_keeps_is_not_known_before_training():
    found, settings = look(row([1, 5, 6])), SSTokenConfig(selector="threshold")
    assert (found.kept(settings), found.kept_share(settings)) == (None, None)


SINGLE = row([5, 6, 7, 8], position_ids=[0, 1, 2, 3], attention_mask=[1, 1, 1, 1])
# Positions of somebody's own, that one sample may have.
ALONE = {
    "from elsewhere": row([5, 6, 7, 8], position_ids=[7, 8, 9, 10], attention_mask=[1, 1, 1, 1]),
    "padded right": row([5, 6, 0, 0], [-100, 6, -100, -100], position_ids=[0, 1, 0, 0], attention_mask=[1, 1, 0, 0]),
    "padded left": row([0, 0, 5, 6], [-100, -100, -100, 6], position_ids=[0, 0, 0, 1], attention_mask=[0, 0, 1, 1]),
    "padding unmarked": row([5, 6, 0, 0], [-100, 6, -100, -100], position_ids=[0, 1, 0, 0], attention_mask=[1] * 4),
    "padding counted on": row([0, 0, 5, 6], position_ids=[1, 1, 0, 1], attention_mask=[0, 0, 1, 1]),
}
SHARED = {
    "two": row([5, 6, 7, 8], position_ids=[0, 1, 0, 1], attention_mask=[1, 1, 1, 1]),
    "begun before": row([5, 6, 7, 8], position_ids=[7, 8, 0, 1], attention_mask=[1, 1, 1, 1]),
    "padding between": row([5, 6, 0, 7, 8], position_ids=[0, 1, 0, 0, 1], attention_mask=[1, 1, 0, 1, 1]),
    "the first unlabelled": row([5, 6, 7, 8], [-100] * 3 + [8], position_ids=[0, 1, 0, 1], attention_mask=[1] * 4),
}


@pytest.mark.parametrize("alone", ALONE.values(), ids=ALONE)
def test_one_sample_a_row_is_accepted_whatever_its_positions(alone):
    refuse_rows(Dataset.from_list([SINGLE, alone, alone]), packed=False, names=NAMES)


@pytest.mark.parametrize("shared", SHARED.values(), ids=SHARED)
def test_samples_that_share_a_row_are_counted_in_all_rows(shared, monkeypatch):
    monkeypatch.setattr(survey, "MOST_ROWS", 100)
    rows = Dataset.from_list([SINGLE] * 150 + [shared] + [SINGLE] * 149 + [shared])
    with pytest.raises(ValueError, match=r"datasets: 2 of 301 rows .* sample_packing: true"):
        refuse_rows(rows, packed=False, names=NAMES)
    # There Axolotl counts positions anew.
    refuse_rows(Dataset.from_list([SINGLE, SINGLE]), packed=True, names=NAMES)


@pytest.mark.parametrize("mask", [[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1]], ids=str)
def test_padding_in_rows_that_are_packed_is_refused(mask):
    rows = [SINGLE] * 120 + [{**SINGLE, "attention_mask": mask}] * 3
    with pytest.raises(ValueError, match=r"sample_packing: 3 of 123 rows .* set sample_packing: false"):
        refuse_rows(Dataset.from_list(rows), packed=True, names=NAMES)
    refuse_rows(Dataset.from_list(rows), packed=False, names=NAMES)
    refuse_rows(Dataset.from_list([row([5, 6, 7])]), packed=True, names=NAMES)


def test_of_a_large_data_set_rows_all_over_it_are_looked_at(monkeypatch):
    monkeypatch.setattr(survey, "MOST_ROWS", 400)
    rows = [row([5, 6, 7])] * 1900 + [row([5, 6, 7], [6, 7, -100])] * 100
    found = look(*rows)
    assert 300 <= found.rows <= 500
    assert look(*rows[::-1]).relabelled == 100


def test_of_long_rows_fewer_are_looked_at_and_all_over_the_data(monkeypatch):
    monkeypatch.setattr(survey, "MOST_TOKENS", 100_000)
    clean, shifted = row([5] * 500), row([5] * 500, [6] * 500)
    found = look(*[clean] * 300, *[shifted] * 700)
    assert 100 <= found.rows <= 400
    assert found.relabelled / found.rows >= 0.5


def test_rows_without_labels_are_looked_at_as_they_are_trained_on():
    plain = look({"input_ids": [5, 2, 6, 2], "attention_mask": [1, 1, 1, 1]}, {"input_ids": [7, 2]})
    assert (plain.rows, plain.warnings(), plain.ends) == (2, [], {2})
    # An end inside of an answer is none, but in a packed row it may stand at the end of a sample.
    assert look({"input_ids": [5, 6, 2, 7, 8]}).ends == frozenset()
    assert look({"input_ids": [5, 6, 2, 7, 8], "seq_lengths": [3, 2]}).ends == {2}
    assert look({"input_ids": [5, 2, 6, 7], "completion_mask": [0, 1, 0, 1]}).ends == {2}


def test_other_kinds_of_data_are_not_looked_at():
    assert Survey.of([row([5, 6])], ENDS) is None
    assert Survey.of(Dataset.from_list([{"text": "Name a tree."}]), ENDS) is None


PRETOKENISED = {"ds_type": "json", "type": None}


def prepared(config, tmp_path, rows, **changes):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return {**config, "datasets": [{"path": str(file), **PRETOKENISED}], "max_steps": 1, **changes}


def packed_rows(tokenizer):
    one, two = (tokenizer.encode(text) for text in ("Name a tree: an oak, say.", "Name a river: the Rhine."))
    labels = [-100, -100, -100, *one[3:], -100, -100, -100, *two[3:]]
    positions = [*range(len(one)), *range(len(two))]
    return [{"input_ids": one + two, "labels": labels, "position_ids": positions, "attention_mask": [1] * len(labels)}]


@pytest.mark.parametrize("command", ["train", "inspect_command", "score_command"])
def test_rows_of_several_samples_are_refused_before_training(config, train, tokenizer, tmp_path, command):
    from conftest import write

    from sstoken_plugin.axolotl import cli

    rows = [*packed_rows(tokenizer) * 3, {k: v[:6] for k, v in packed_rows(tokenizer)[0].items()}]
    settings = prepared(config, tmp_path, rows, sstoken={"history_cache": str(tmp_path / "cache")})
    said = r"datasets: 3 of 4 rows hold several samples"
    if command == "train":
        with pytest.raises(ValueError, match=said):
            train(settings)
    else:
        result = CliRunner().invoke(getattr(cli, command), [str(write(settings, tmp_path))])
        assert result.exit_code == 1
        assert "3 of 4 rows hold several samples" in result.output


def test_a_run_says_what_is_odd_in_its_data(config, train, tokenizer, tmp_path, caplog):
    ids = tokenizer.encode("Name a tree: an oak, or a beech.<|im_end|>")
    labels = [-100] * 4 + ids[4:]
    padding = [2] * 5
    rows = [
        {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)},
        {"input_ids": ids + padding, "labels": labels + padding, "attention_mask": [1] * len(ids) + [0] * 5},
        {"input_ids": ids, "labels": [*labels[1:], -100], "attention_mask": [1] * len(ids)},
    ]
    train(prepared(config, tmp_path, rows))
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("ssToken: 1 of 3")]
    assert [any(word in text for text in said) for word in ("padding", "shifted")] == [True, True]


@pytest.mark.parametrize(("ends", "said"), [("<|im_end|>", True), ("", False)])
def test_the_start_up_line_names_ends_that_the_data_has(config, train, tokenizer, tmp_path, caplog, ends, said):
    ids = tokenizer.encode(f"Name a tree: an oak, or a beech.{ends}")
    rows = [{"input_ids": ids, "labels": [-100] * 4 + ids[4:], "attention_mask": [1] * len(ids)}] * 4
    with caplog.at_level("INFO"):
        train(prepared(config, tmp_path, rows))
    (line,) = [record.getMessage() for record in caplog.records if "ssToken is active" in record.getMessage()]
    assert ("the end of a turn (<|im_end|>) is always kept" in line) is said
