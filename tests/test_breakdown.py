"""What is counted of kept tokens over the data, against a count by hand."""

from __future__ import annotations

import pytest
import torch

from sstoken_plugin.engine.step import Phase, TokenScores
from sstoken_plugin.report.breakdown import FENCE, KeptCounts, part_of
from sstoken_plugin.report.content import KINDS
from sstoken_plugin.selection.samples import BatchLayout
from sstoken_plugin.selection.turns import EndTokens, Turns

END = "<|im_end|>"


class Step:
    """What is counted of a scored step, with every second response token kept."""

    def __init__(self, tokenizer, samples, rule="sstoken", history=None):
        rows = [[tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts] for texts in samples]
        flat = [[(token, index % 2) for index, part in enumerate(row) for token in part] for row in rows]
        ids = torch.tensor([token for row in flat for token, _ in row])[None]
        labels = torch.tensor([token if response else -100 for row in flat for token, response in row])[None]
        places = torch.tensor([place for row in flat for place in range(len(row))])[None]
        batch = {"input_ids": ids, "labels": labels, "position_ids": places}
        self.layout = BatchLayout.of(batch)
        self.turns = Turns.of(batch, self.layout, EndTokens({tokenizer.eos_token_id}))
        self.phase = Phase(rule, 0.5, 0.5)
        count = len(self.layout.position)
        self.kept = torch.arange(count) % 2 == 0
        nll = torch.zeros(count)
        self.scores = TokenScores(nll, history(count) if history else None, None, None, nll)


def tables(counts):
    found = counts.tables(counts.counts)
    return {table.title: {label: (seen, kept) for label, seen, kept in table.rows} for table in found}


def test_two_packed_samples_are_counted_by_hand(tokenizer):
    counts = KeptCounts(tokenizer, len(tokenizer))
    one = ["Ask", " red red red red" + END, " more", " red"]
    two = ["Ask", f" see\n{FENCE}\nx = 12\n{FENCE}\n 7 !"]
    step = Step(tokenizer, [one, two])
    for _ in range(3):
        counts.add(step)
    found = tables(counts)
    total = len(step.layout.position)
    kept = int(step.kept.sum())
    for rows in found.values():
        assert sum(seen for seen, _ in rows.values()) == 3 * total
        assert sum(k for _, k in rows.values()) == 3 * kept
    reds = step.layout.target == tokenizer(" red")["input_ids"][0]
    assert found["By text"][" red"] == (15, 3 * int((reds & step.kept).sum()))
    assert found["By text"][END] == (3, 3)
    assert found["By turn"]["turn 2"] == (3, 0)
    assert found["By turn"]["turn 1"] == (3 * (total - 1), 3 * kept)
    parts = found[KINDS]
    assert parts["end of turn"] == (3, 3)
    assert "template tokens" not in parts
    texts = [tokenizer.decode([token]) for token in step.layout.target[6:].tolist()]
    first, last = (place for place, text in enumerate(texts) if FENCE in text)
    assert parts["code"][0] == 3 * (last - first + 1)
    assert parts["numbers"][0] == 3 * sum(text.strip() == "7" for text in texts[last:])
    assert "By decile of the history's loss" not in found


def test_places_are_tenths_of_a_response(tokenizer):
    counts = KeptCounts(tokenizer, len(tokenizer))
    counts.add(Step(tokenizer, [["Ask", " red" * 20]]))
    assert tables(counts)["By position in the response"] == {f"tenth {place}": (2, 1) for place in range(1, 11)}


def test_deciles_of_the_historys_loss_are_of_equal_size(tokenizer):
    counts = KeptCounts(tokenizer, len(tokenizer))
    counts.add(Step(tokenizer, [["Ask", " red" * 1000]], history=lambda count: torch.logspace(-6, 1, count)))
    rows = tables(counts)["By decile of the history's loss"]
    assert len(rows) == 10
    assert all(80 <= seen <= 120 for seen, _ in rows.values())
    assert next(iter(rows)).startswith("0 to ")


def test_edges_of_neighbouring_deciles_differ(tokenizer):
    counts = KeptCounts(tokenizer, len(tokenizer))
    counts.add(Step(tokenizer, [["Ask", " red" * 1000]], history=lambda count: torch.linspace(0.95, 1.3, count)))
    labels = list(tables(counts)["By decile of the history's loss"])
    assert len(labels) > 3
    edges = [label.split(" to ") for label in labels]
    assert all(float(low) < float(high) for low, high in edges), labels
    assert [high for _, high in edges[:-1]] == [low for low, _ in edges[1:]]


def test_losses_that_are_all_the_same_or_not_finite_are_counted_too(tokenizer):
    for value in (0.0, 3.0, float("nan"), float("inf")):
        counts = KeptCounts(tokenizer, len(tokenizer))
        counts.add(Step(tokenizer, [["Ask", " red" * 9]], history=lambda count, v=value: torch.full((count,), v)))
        ((seen, kept),) = tables(counts)["By decile of the history's loss"].values()
        assert (seen, kept) == (9, 5)


def test_a_new_rule_starts_anew_and_a_restored_count_goes_on(tokenizer):
    counts = KeptCounts(tokenizer, len(tokenizer))
    counts.add(Step(tokenizer, [["Ask", " red blue"]], rule="attention"))
    counts.add(Step(tokenizer, [["Ask", " green"]]))
    assert tables(counts)["By text"] == {" green": (1, 1)}
    other = KeptCounts(tokenizer, len(tokenizer))
    other.restore(counts.rule, counts.counts)
    other.add(Step(tokenizer, [["Ask", " green"]]))
    assert tables(other)["By text"] == {" green": (2, 2)}


def test_a_failure_costs_the_tables_and_is_said_once(tokenizer, caplog):
    # As with a tokenizer that has more tokens than the model.
    counts = KeptCounts(tokenizer, 10)
    for _ in range(2):
        counts.add(Step(tokenizer, [["Ask", " red blue"]]))
    assert tables(counts) == {}
    assert caplog.text.count("the page has no tables") == 1


def test_counts_that_cannot_be_are_refused(tokenizer):
    counts = KeptCounts(tokenizer, len(tokenizer))
    for value in (-1, 7):
        wrong = counts.counts.clone()
        wrong[1, 3] = value
        with pytest.raises(ValueError, match="more tokens kept than seen"):
            counts.restore("sstoken", wrong)


def test_a_batch_without_response_tokens_counts_nothing(tokenizer):
    counts = KeptCounts(tokenizer, len(tokenizer))
    counts.add(Step(tokenizer, [["Ask"]]))
    assert tables(counts) == {}


def test_parts_of_text():
    for text, part in {
        " word": "words",
        "don't": "words",
        "12": "numbers",
        " 7": "numbers",
        "½": "numbers",
        "\n\n": "whitespace",
        "  ": "whitespace",
        ",": "punctuation",
        " $": "punctuation",
        "x1": "words",
        " Paris": "names",
        "NASA": "names",
        " I": "words",
        "é": "words",
    }.items():
        assert part_of(text) == part, text
    assert part_of(" The", begins=True) == "words"


def test_a_capital_makes_a_name_unless_it_begins_a_sentence(tokenizer):
    counts = KeptCounts(tokenizer, len(tokenizer))
    text = (
        "The capital is Paris. The river is the Seine, and I like it!\nIt is 12 km: Long.\n- First\n```\nX = Y\n```\n"
    )
    counts.add(Step(tokenizer, [["Ask", text + END, " more", "Then Rome"]]))
    parts = {name: seen for name, (seen, _) in tables(counts)[KINDS].items()}
    ids = tokenizer(" Paris Seine Rome", add_special_tokens=False)["input_ids"]
    # Pieces behind the first, of a name of several, are words.
    assert parts["names"] == sum(tokenizer.decode([token]).strip()[0].isupper() for token in ids) == 3
    assert parts["end of turn"] == 1
    assert "template tokens" not in parts
    assert parts["numbers"] == len(tokenizer("12")["input_ids"])


def test_letters_of_several_tokens_are_no_punctuation(tokenizer):
    counts = KeptCounts(tokenizer, len(tokenizer))
    counts.add(Step(tokenizer, [["Say it", "你好世界我喜欢学习。안녕 🎉"]]))
    found = tables(counts)
    parts = found[KINDS]
    assert "punctuation" not in parts or parts["punctuation"][0] <= 3
    assert parts["parts of characters"][0] > 10
    assert "\ufffd" not in "".join(found["By text"])


def test_no_two_rows_have_one_name(tokenizer):
    counts = KeptCounts(tokenizer, len(tokenizer))
    step = Step(tokenizer, [["Say it", "你好世界我喜欢学习 안녕 🎉🎊🥳 𓀀"]])
    counts.add(step)
    found = counts.tables(counts.counts)
    labels = next([label for label, _, _ in table.rows] for table in found if table.title == "By text")
    assert len(set(labels)) == len(labels) == len(set(step.layout.target.tolist()))
