"""Where the samples of a batch lie, and which of their tokens are prompt and which response."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from sstoken_plugin.selection import batching
from sstoken_plugin.selection.samples import BatchLayout, as_batch, sample_keys

# Prompt and response of three samples; lower than 0 marks a prompt token.
SAMPLES = [[-5, -6, 7, 8, 9], [-3, 4], [-5, 11, -12, -13, 14, 15]]


def batch_of(rows, **others):
    """A batch from rows of signed tokens: negative for a prompt token, None for padding."""
    signed = [[0 if token is None else token for token in row] for row in rows]
    batch = {
        "input_ids": torch.tensor(signed).abs(),
        "labels": torch.tensor([[token if token > 0 else -100 for token in row] for row in signed]),
        **{key: torch.tensor(value) for key, value in others.items()},
    }
    if any(None in row for row in rows):
        batch["attention_mask"] = torch.tensor([[int(token is not None) for token in row] for row in rows])
    return batch


def padded(samples, side):
    width = max(map(len, samples))
    gaps = [[None] * (width - len(sample)) for sample in samples]
    both = zip(gaps, samples, strict=True)
    return batch_of([gap + sample if side == "left" else sample + gap for gap, sample in both])


def packed(samples):
    return batch_of([list(chain(*samples))], position_ids=[[i for sample in samples for i in range(len(sample))]])


def by_sample(values, layout):
    return [part.tolist() for part in values.split(layout.lengths.tolist())]


BATCHES = {
    "padded right": padded(SAMPLES, "right"),
    "padded left": padded(SAMPLES, "left"),
    "packed": packed(SAMPLES),
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_every_sample_has_its_response_tokens(batch):
    layout = BatchLayout.of(batch)
    assert by_sample(layout.target, layout) == [[7, 8, 9], [4], [11, 14, 15]]
    assert by_sample(layout.index_in_sample, layout) == [[0, 1, 2], [0], [0, 1, 2]]
    assert layout.sample.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert layout.has_prompt.tolist() == [True, True, True]
    assert batch["input_ids"].flatten()[layout.position].tolist() == layout.target.tolist()


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_prompt_is_the_real_unlabelled_tokens(batch):
    assert batch["input_ids"][BatchLayout.of(batch).prompt].tolist() == [5, 6, 3, 5, 12, 13]


def test_a_token_behind_the_response_is_no_prompt_of_it():
    """As a collator leaves it that takes the end of a turn for padding: nobody sees it."""
    ids = torch.arange(1, 9)[None]
    for labels, found in (([-100, 2, 3, 4, 5, 6, 7, -100], True), ([1, 2, 3, 4, 5, 6, 7, -100], False)):
        assert BatchLayout.of({"input_ids": ids, "labels": torch.tensor([labels])}).has_prompt.tolist() == [found]


def test_rows_of_tensors_are_read_like_lists_and_left_as_they_are(recwarn):
    row = {"input_ids": [1, 2, 3, 4], "completion_mask": [0, 1, 1, 0]}
    of_tensors = {name: torch.tensor(column) for name, column in row.items()}
    for name, column in as_batch(row).items():
        assert torch.equal(as_batch(of_tensors)[name], column), name
    as_batch(of_tensors)["input_ids"].zero_()
    assert of_tensors["input_ids"].tolist() == row["input_ids"]
    assert not recwarn


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_a_response_token_is_predicted_one_position_before(batch):
    layout = BatchLayout.of(batch)
    before = batch["input_ids"].flatten()[layout.logit_position]
    assert by_sample(before, layout) == [[6, 7, 8], [3], [5, 13, 14]]


def test_positions_count_across_rows():
    layout = BatchLayout.of(padded(SAMPLES, "right"))
    assert layout.shape == (3, 6)
    assert layout.position.tolist() == [2, 3, 4, 7, 13, 16, 17]


def test_the_fingerprint_of_a_sample_is_the_same_in_every_batch():
    alone = [BatchLayout.of(batch_of([sample])).fingerprint.item() for sample in SAMPLES]
    assert len(set(alone)) == 3
    for batch in BATCHES.values():
        assert BatchLayout.of(batch).fingerprint.tolist() == alone
    assert BatchLayout.of(packed(SAMPLES[::-1])).fingerprint.tolist() == alone[::-1]


def test_samples_that_differ_in_a_token_an_order_or_a_length_differ_in_fingerprint():
    samples = [[-5, -6, 7, 8], [-5, -6, 7, 9], [-6, -5, 7, 8], [-5, -6, 8, 7], [-5, -6, 7, 8, 8], [-6, 7, 8]]
    assert len(set(BatchLayout.of(packed(samples)).fingerprint.tolist())) == len(samples)


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("tail", [[0, 1, 2], [0, 0, 0]], ids=["counting", "zeros"])
def test_a_padded_tail_of_a_packed_row_belongs_to_no_sample(tail, masked):
    positions = [0, 1, 2, 3, 4, 0, 1, *tail]
    batch = batch_of([SAMPLES[0] + SAMPLES[1] + [None] * 3], position_ids=[positions])
    if not masked:
        del batch["attention_mask"]
    layout, expected = BatchLayout.of(batch), BatchLayout.of(packed(SAMPLES[:2]))
    for name in ("position", "sample", "lengths", "target", "has_prompt", "fingerprint"):
        assert torch.equal(getattr(layout, name), getattr(expected, name)), name


def test_samples_are_counted_on_across_packed_rows():
    rows = [SAMPLES[0] + SAMPLES[1], SAMPLES[1] + SAMPLES[0]]
    layout = BatchLayout.of(batch_of(rows, position_ids=[[0, 1, 2, 3, 4, 0, 1], [0, 1, 0, 1, 2, 3, 4]]))
    assert by_sample(layout.target, layout) == [[7, 8, 9], [4], [4], [7, 8, 9]]
    assert layout.fingerprint[0] == layout.fingerprint[3]


def test_the_turns_of_a_sample_form_one_ranking():
    layout = BatchLayout.of(batch_of([[-1, -2, 3, 4, -5, -6, 7]]))
    assert layout.lengths.tolist() == [3]
    assert layout.index_in_sample.tolist() == [0, 1, 2]
    assert layout.prompt.tolist() == [[True, True, False, False, True, True, False]]


def test_a_labelled_sample_start_is_trained_on_only_where_everything_is():
    batch = packed([[1, 2, -3, 4], [5, 6]])
    ranked = BatchLayout.of(batch)
    assert by_sample(ranked.target, ranked) == [[2, 4], [6]]
    assert ranked.has_prompt.tolist() == [True, False]
    # What plain training learns from: all labels but the row's first, which nothing predicts.
    everything = BatchLayout.of(batch, as_plain=True)
    assert by_sample(everything.target, everything) == [[2, 4], [5, 6]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_first_token_of_a_padded_sample_is_never_ranked(side):
    """On the left padding stands before it, which predicts nothing of it."""
    layout = BatchLayout.of(padded([[1, 2, 3], [4, 5, 6, 7, 8]], side))
    assert by_sample(layout.target, layout) == [[2, 3], [5, 6, 7, 8]]
    assert layout.fingerprint.tolist() == BatchLayout.of(packed([[1, 2, 3], [4, 5, 6, 7, 8]])).fingerprint.tolist()


def labelled_padding(samples, side, pad=2):
    """As data whose padding is the end-of-sequence token, and labelled as that."""
    batch = padded(samples, side)
    gaps = batch["attention_mask"] == 0
    batch["input_ids"][gaps] = batch["labels"][gaps] = pad
    return batch


@pytest.mark.parametrize("side", ["right", "left"])
def test_labelled_padding_is_trained_on_only_where_everything_is(side):
    batch = labelled_padding(SAMPLES, side)
    layout, clean = BatchLayout.of(batch), BatchLayout.of(padded(SAMPLES, side))
    for name in ("position", "sample", "lengths", "target", "prompt", "has_prompt", "fingerprint"):
        assert torch.equal(getattr(layout, name), getattr(clean, name)), name
    everything = BatchLayout.of(batch, as_plain=True)
    assert len(everything.target) == int((batch["labels"][:, 1:] != -100).sum())


SHAPES = {
    **BATCHES,
    "labelled padding right": labelled_padding(SAMPLES, "right"),
    "labelled padding left": labelled_padding(SAMPLES, "left"),
    "another padding token": labelled_padding(SAMPLES, "left", pad=9),
}


def keys_of(batch):
    return sample_keys(batch, 16)[0]


@pytest.mark.parametrize("batch", SHAPES.values(), ids=SHAPES)
def test_a_sample_has_one_key_wherever_it_stands(batch):
    keys, lengths = sample_keys(batch, 16)
    assert lengths == [3, 1, 3]
    assert keys == [keys_of(batch_of([sample]))[0] for sample in SAMPLES]
    rows = [{key: column[row].tolist() for key, column in batch.items()} for row in range(len(batch["labels"]))]
    if len(rows) == 3:
        # A row of a prepared data set, with the padding that it has.
        alone = [as_batch(row) for row in rows]
        assert [row["input_ids"].tolist()[0] for row in alone] == [[abs(token) for token in one] for one in SAMPLES]
        assert [keys_of(row)[0] for row in alone] == keys


def test_padding_before_a_sample_inside_of_a_row_belongs_to_none():
    """As rows that were padded on the left look when they are put together, whether padding counts or not."""
    for positions in ([0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 0, 0, 0, 1, 2]):
        batch = batch_of([[-5, 6, 7, None, None, -8, 9, 2]], position_ids=[positions])
        layout = BatchLayout.of(batch)
        assert by_sample(layout.target, layout) == [[6, 7], [9, 2]]
        batch["labels"][0, 5] = 8
        assert by_sample(BatchLayout.of(batch).target, layout) == [[6, 7], [9, 2]]


def test_positions_of_ones_own_are_kept_and_change_the_key():
    plain = {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}
    counted = as_batch({**plain, "position_ids": [0, 1, 2, 3]})
    jump = as_batch({**plain, "position_ids": [0, 1, 900, 901]})
    left = {"input_ids": [0, 5, 6, 7, 8], "labels": [-100, -100, 6, 7, 8], "attention_mask": [0, 1, 1, 1, 1]}
    padded_left = as_batch({**left, "position_ids": [0, 0, 1, 2, 3]})
    assert keys_of(counted) == keys_of(as_batch(plain)) == keys_of(padded_left)
    assert keys_of(jump) != keys_of(counted)
    assert "position_ids" not in batching.padded([counted, as_batch(plain)])
    batch = batching.padded([jump, as_batch({"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9]})])
    assert batch["position_ids"].tolist() == [[0, 1, 900, 901, 0], [0, 1, 2, 3, 4]]
    assert keys_of(batch)[0] == keys_of(jump)[0]


def changed(name, value, place=(0, 3)):
    batch = batch_of([[-5, -6, 7, 8, 9]], attention_mask=[[1] * 5])
    batch[name][place] = value
    return batch


def test_whatever_changes_a_loss_changes_the_key():
    variants = [
        changed("input_ids", 8),
        changed("input_ids", 6),
        changed("labels", 6),
        changed("labels", -100),
        changed("labels", 5, (0, 1)),
        changed("labels", 6, (0, 1)),
        changed("attention_mask", 0, (0, 1)),
        changed("attention_mask", 0, (0, 0)),
        packed([[-5, -6, 7], [8, 9]]),
    ]
    # Without the token that is not attended to, those behind it stand elsewhere.
    variants.append(batch_of([[-5, 7, 8, 9]]))
    # Labels shifted by hand are other losses over the same tokens.
    shifted = batch_of([[-5, -6, 7, 8, 9]])
    shifted["labels"] = shifted["labels"].roll(-1, 1)
    keys = [tuple(keys_of(batch)) for batch in (*variants, shifted)]
    assert len(set(keys)) == len(keys)


def test_samples_are_padded_with_the_masks_that_they_have():
    holes = changed("attention_mask", 0, (0, 1))
    batch = batching.padded([batch_of([[-5, 6, 7, 8, 9, 10]]), holes])
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 0, 1, 1, 1, 0]]
    assert keys_of(batch) == [*keys_of(batch_of([[-5, 6, 7, 8, 9, 10]])), *keys_of(holes)]


def test_a_sample_without_response_is_passed_over():
    layout = BatchLayout.of(packed([[-1, -2], [-3, 4], [-5]]))
    assert layout.lengths.tolist() == [1]
    assert layout.fingerprint.tolist() == BatchLayout.of(batch_of([[-3, 4]])).fingerprint.tolist()


def test_a_batch_without_labels_has_no_sample():
    layout = BatchLayout.of(padded([[-1, -2, -3], [-4]], "right"))
    assert layout.prompt.sum() == 4
    for name in ("position", "sample", "lengths", "target", "has_prompt", "fingerprint", "index_in_sample"):
        assert getattr(layout, name).shape == (0,), name
