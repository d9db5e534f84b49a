"""Batches and rows as other trainers make them: the same samples are found in each, and nothing else."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from chosen_families import LLAMA, build
from datasets import Dataset
from reference import keep, samples_of, signals
from transformers import DataCollatorWithFlattening, ProcessorMixin
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sstoken_plugin.engine.losses import token_nll
from sstoken_plugin.engine.output_head import response_nll
from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.history import scoring
from sstoken_plugin.report.inspection import inspect_samples
from sstoken_plugin.report.trajectory import Trajectory
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.rows import rows_of
from sstoken_plugin.selection.samples import BatchLayout, as_batch, keyed_samples, labels_of, sample_keys, samples_in
from sstoken_plugin.training.tokenizers import tokenizer_of

# Tokens of three samples; lower than 0 marks a prompt token. The first has no prompt, as text to go on with.
SIGNED = [[5, 6, 7, 8, 9], [-3, 4], [-5, 11, -12, -13, 14, 15]]
IDS = [[abs(token) for token in sample] for sample in SIGNED]
LABELS = [[token if token > 0 else -100 for token in sample] for sample in SIGNED]
ROWS = [{"input_ids": ids, "labels": labels} for ids, labels in zip(IDS, LABELS, strict=True)]
RESPONSES = [[6, 7, 8, 9], [4], [11, 14, 15]]
LENGTHS = [len(ids) for ids in IDS]


def joined(lists):
    return list(chain(*lists))


def numbers(samples, width):
    """As LLaMA-Factory's rows: the number of its sample for each token, from 1, and 0 for padding."""
    found = joined([number] * len(sample) for number, sample in enumerate(samples, 1))
    return found + [0] * (width - len(found))


def over_pairs(row, seen=True, unseen=False):
    """As LLaMA-Factory makes it of those: a token sees its own sample up to itself, and padding sees nothing."""
    width = range(len(row))
    return [[seen if row[i] and row[i] == row[j] and j <= i else unseen for j in width] for i in width]


def filled(values, fill, width):
    return values + [fill] * (width - len(values))


def neat(mask, width=16):
    """Two rows of LLaMA-Factory's neat packing, with a mask over pairs made by `mask` from sample numbers."""
    packs = ((0, 1), (2,))
    rows = [
        {
            "input_ids": filled(joined(IDS[i] for i in pack), 2, width),
            "labels": filled(joined(LABELS[i] for i in pack), -100, width),
            "attention_mask": [mask(numbers([IDS[i] for i in pack], width))],
            "position_ids": filled(joined(range(LENGTHS[i]) for i in pack), 0, width),
        }
        for pack in packs
    ]
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def floats(row):
    return over_pairs(row, 0.0, torch.finfo(torch.float32).min)


def alone(row):
    """Padding sees itself, which keeps a softmax over nothing from being no number."""
    mask = over_pairs(row)
    for place, number in enumerate(row):
        mask[place][place] |= not number
    return mask


def without(batch, *names):
    return {name: column for name, column in batch.items() if name not in names}


def flattened(**options):
    return DataCollatorWithFlattening(return_tensors="pt", **options)([dict(row) for row in ROWS])


def trl(rows=ROWS, **options):
    return DataCollatorForLanguageModeling(pad_token_id=2, **options)(rows)


def trl_rows():
    """Rows that TRL has packed: the longest sample alone, then the other two."""
    packed = pack_dataset(Dataset.from_list(ROWS).with_format("arrow"), 7, "bfd").with_format(None)
    assert sorted(joined(packed["seq_lengths"])) == sorted(LENGTHS)
    return list(packed)


def three_positions(batch):
    return {**batch, "position_ids": torch.stack([batch["position_ids"]] * 4)}


BATCHES = {
    "padding-free": flattened(),
    "padding-free, flash": flattened(return_flash_attn_kwargs=True, return_seq_idx=True),
    "padding-free, flash alone": flattened(return_flash_attn_kwargs=True, return_position_ids=False),
    "padding-free, counted from 2": {
        **flattened(),
        "position_ids": torch.tensor([joined(range(2, 2 + length) for length in LENGTHS)]),
    },
    "TRL, padded": trl(),
    "TRL, padding-free": trl(padding_free=True),
    "TRL, padding-free, padded with zeros": trl(padding_free=True, pad_to_multiple_of=16),
    "TRL, packed": trl(trl_rows(), padding_free=True),
    "pairs, bool": neat(over_pairs),
    "pairs, whole numbers": neat(lambda row: over_pairs(row, 1, 0)),
    "pairs, float": neat(floats),
    "pairs, bfloat16": {**neat(floats), "attention_mask": neat(floats)["attention_mask"].to(torch.bfloat16)},
    "pairs, padding sees itself": neat(alone),
    "pairs, without positions": without(neat(floats), "position_ids"),
    "pairs, no padding": {
        **flattened(),
        "attention_mask": torch.tensor([[over_pairs(numbers(IDS, sum(LENGTHS)))]]),
    },
    "sample numbers": {
        **without(flattened(), "position_ids"),
        "attention_mask": torch.tensor([numbers(IDS, sum(LENGTHS))]),
    },
    "flash, no mask": {**flattened(), "attention_mask": None},
    "positions of images and text": three_positions(flattened()),
}


def found(batch):
    """The response tokens of each sample, whatever their order in the batch."""
    layout = BatchLayout.of(batch)
    parts = [part.tolist() for part in layout.target.split(layout.lengths.tolist())]
    return dict(zip(map(tuple, parts), layout.fingerprint.tolist(), strict=True))


ALONE = {
    tuple(response): BatchLayout.of(as_batch(row)).fingerprint.item()
    for response, row in zip(RESPONSES, ROWS, strict=True)
}
KEYS = {sample_keys(as_batch(row), 16)[0][0] for row in ROWS}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_samples_of_a_batch_are_found(batch):
    assert found(batch) == ALONE
    layout = BatchLayout.of(batch)
    assert sorted(batch["input_ids"][layout.prompt & (batch["input_ids"] != 5)].tolist()) == [3, 12, 13]
    tokens = {layout.segment[layout.real.flatten()].tolist().count(number) for number in layout.segment.unique()}
    assert tokens == set(LENGTHS), "something else counts as a sample"


@pytest.mark.parametrize(("name", "batch"), [item for item in BATCHES.items() if "from 2" not in item[0]], ids=str)
def test_a_sample_has_the_key_that_it_has_alone(name, batch):
    assert set(sample_keys(batch, 16)[0]) == KEYS


@pytest.mark.parametrize("name", [name for name in BATCHES if "from 2" not in name and "numbers" not in name])
def test_the_samples_are_those_that_the_reference_reads(name):
    batch = {key: column for key, column in BATCHES[name].items() if column is not None}
    if batch.get("position_ids", torch.zeros(0)).dim() == 3:
        batch["position_ids"] = batch["position_ids"][0]
    ids, labels = batch["input_ids"].flatten(), batch["labels"].flatten()
    responses = [[labels[i].item() for i in sample[1:] if labels[i] != -100] for sample in samples_of(batch)]
    assert sorted(filter(None, responses)) == sorted(RESPONSES)
    samples = [ids[sample].tolist() for sample in samples_of(batch)]
    assert sorted(sample for sample in samples if len(sample) > 1) == sorted(IDS)


def test_padding_that_counts_zeros_is_no_sample_and_no_prompt():
    batch = trl(padding_free=True, pad_to_multiple_of=16)
    assert batch["position_ids"][0, sum(LENGTHS) :].tolist() == [0] * 3
    layout = BatchLayout.of(batch)
    assert layout.real.tolist() == [[True] * sum(LENGTHS) + [False] * 3]
    row = {name: batch[name][0].tolist() for name in ("input_ids", "labels", "position_ids")}
    assert as_batch(row)["input_ids"].tolist() == [joined(IDS)]


def test_positions_that_are_not_one_a_token_are_named():
    batch = neat(floats)
    batch["position_ids"] = batch["position_ids"][:, :9]
    with pytest.raises(ValueError, match=r"^position_ids: a batch has 9 of them a row and 16 tokens"):
        sample_keys(batch, 16)


def llama_factory_rows():
    batch = neat(lambda row: row)
    return [{name: column[row].flatten().tolist() for name, column in batch.items()} for row in range(2)]


PACKED = {"TRL": trl_rows(), "LLaMA-Factory": llama_factory_rows()}


@pytest.mark.parametrize("rows", PACKED.values(), ids=PACKED)
def test_the_samples_of_packed_rows_are_found(rows):
    assert len(rows) == 2
    keys = joined(sample_keys(as_batch(row), 16)[0] for row in rows)
    assert (len(keys), set(keys)) == (3, KEYS)
    samples = joined(map(samples_in, rows))
    assert sorted(sample["input_ids"][0].tolist() for sample in samples) == sorted(IDS)
    assert sorted(sample["labels"][0].tolist() for sample in samples) == sorted(LABELS)
    for sample in samples:
        # As alone: neither what came before them, nor a number among others.
        assert "position_ids" not in sample
        assert set(sample.get("attention_mask", torch.ones(1)).flatten().tolist()) == {1}


def test_lengths_that_are_not_those_of_the_row_are_named():
    with pytest.raises(ValueError, match=r"^seq_lengths: a row has 3 tokens and names samples of 4 tokens"):
        as_batch({"input_ids": [1, 2, 3], "seq_lengths": [2, 2]})


def test_without_labels_everything_but_padding_is_trained_on():
    """As TRL's collator makes them."""
    rows = [{"input_ids": ids} for ids in IDS]
    batch = trl(rows)
    assert torch.equal(labels_of(without(batch, "labels")), batch["labels"])
    assert found(without(batch, "labels")) == found(batch)
    assert [key for row in rows for key in sample_keys(as_batch(row), 16)[0]] == sample_keys(batch, 16)[0]
    padded_left = as_batch({"input_ids": [2, 2, 5, 6], "attention_mask": [0, 0, 1, 1]})
    assert padded_left["labels"].tolist() == [[5, 6]]


@pytest.mark.parametrize(
    ("masks", "labels"),
    [
        ({"completion_mask": [0, 0, 1, 1]}, [-100, -100, 7, 8]),
        ({"assistant_masks": [0, 1, 0, 1]}, [-100, 6, -100, 8]),
        ({"completion_mask": [0, 0, 1, 1], "assistant_masks": [0, 1, 0, 1]}, [-100, -100, -100, 8]),
        # What a data set says itself.
        ({"labels": [-100, 6, 7, 8], "completion_mask": [0, 0, 1, 1]}, [-100, 6, 7, 8]),
    ],
)
def test_masks_of_a_row_name_what_is_trained_on(masks, labels):
    assert as_batch({"input_ids": [5, 6, 7, 8], **masks})["labels"].tolist() == [labels]


def ratio(value, **settings):
    return SSTokenConfig(selector="attention", warmup_ratio=0.0, ratio=value, keep_eos=False, **settings)


@pytest.fixture
def model():
    return build(LLAMA, "eager")


@pytest.mark.parametrize("name", ["pairs, float", "TRL, padding-free, padded with zeros", "TRL, packed"])
def test_a_step_keeps_what_the_reference_keeps(model, name):
    from sstoken_plugin.engine.attention import PromptAttention

    batch = {**BATCHES[name], "input_ids": BATCHES[name]["input_ids"] + 20}
    batch["labels"] = torch.where(batch["labels"] == -100, -100, batch["labels"] + 20)
    config = ratio(0.5)
    step = TokenSelection(config, PromptAttention.of(model, -1), None, []).begin(model, batch, Phase.of(config))
    with step.observed():
        step.loss(model(**without(batch, "labels"), use_cache=False))
    rows = {position: row for row, position in enumerate(step.layout.position.tolist())}
    labels = batch["labels"].flatten()
    kept = 0
    for sample in samples_of(batch):
        places = [place for place in range(1, len(sample)) if labels[sample[place]] != -100]
        if not places:
            continue
        nll, attention = signals(model, batch["input_ids"].flatten()[sample].tolist())
        own = [rows[sample[place]] for place in places]
        torch.testing.assert_close(step.scores.current[own], nll[[place - 1 for place in places]], rtol=0, atol=1e-4)
        prompt = [place for place in range(len(sample)) if labels[sample[place]] == -100]
        mass = attention[places][:, prompt].sum(1)
        torch.testing.assert_close(step.scores.attention[own], mass, rtol=0, atol=1e-5)
        if prompt:
            chosen = keep([0.0] * len(own), mass.tolist(), 0.5, 0.0, [False] * len(own))
            assert step.kept[own].tolist() == chosen
        kept += sum(step.kept[own].tolist())
    assert kept == 2 + 1 + 2


@pytest.mark.parametrize("name", ["pairs, without positions", "padding-free, flash alone", "TRL, packed"])
def test_samples_that_see_each_other_are_refused_however_they_are_packed(model, name, monkeypatch):
    batch, forward = BATCHES[name], type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, input_ids, **_: forward(self, input_ids, use_cache=False))
    config = ratio(0.5)
    with pytest.raises(ValueError, match="see each other"):
        TokenSelection(config, None, None, []).begin(model, batch, Phase.of(config))


def test_a_batch_that_names_a_cache_is_scored_without(model):
    batch = dict(BATCHES["padding-free"])
    layout = BatchLayout.of(batch)
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    expected = token_nll(logits.flatten(0, 1)[layout.logit_position], layout.target)
    for use_cache in (True, False):
        torch.testing.assert_close(response_nll(model, {**batch, "use_cache": use_cache}, layout), expected)


class Letters:
    """A tokenizer that writes a letter for each token."""

    def decode(self, ids, **options):
        return "".join(chr(96 + token) for token in ids)


@pytest.mark.parametrize("rows", PACKED.values(), ids=PACKED)
def test_the_samples_of_packed_rows_are_inspected_each_alone(model, rows, monkeypatch):
    from sstoken_plugin.report import inspection

    monkeypatch.setattr(inspection, "token_texts", lambda tokenizer, ids: list(map(str, ids)))
    config = ratio(0.5)

    def records(samples):
        selection = TokenSelection(config, None, None, [])
        listed = inspect_samples(selection, model, samples, Phase.of(config), Letters())
        return {tuple(record["input_ids"]): record for record in listed}

    alone, packed = records(ROWS), records(rows)
    assert alone.keys() == packed.keys() == set(map(tuple, IDS))
    for ids, record in alone.items():
        for name in ("response", "selected"):
            assert packed[ids][name] == record[name]
        for ours, own in zip(packed[ids]["current_nll"], record["current_nll"], strict=True):
            assert ours == (own if own is None else pytest.approx(own, abs=1e-4))


@pytest.mark.parametrize("rows", PACKED.values(), ids=PACKED)
def test_the_page_shows_a_sample_of_each_packed_row(rows):
    trajectory = Trajectory(SimpleNamespace(samples=Dataset.from_list(rows), config=SSTokenConfig()))
    shown = list(trajectory._candidates())
    assert [sample["sample"] for sample in shown] == [0, 1]
    assert all(as_batch(sample)["input_ids"][0].tolist() in IDS for sample in shown)
    # A checkpoint's samples are found again.
    records = [{**sample, "input_ids": as_batch(sample)["input_ids"][0].tolist()} for sample in shown]
    trajectory.moments = [SimpleNamespace(records=records)]
    assert trajectory._of_checkpoint() == shown


def test_scoring_ahead_takes_the_samples_of_a_packed_row_one_by_one():
    store = SimpleNamespace(missing=lambda keys, lengths: list(keys))
    work = scoring.work_left(SimpleNamespace(store=store), trl_rows())
    assert work.samples == 3
    assert work.response_tokens == sum(map(len, RESPONSES))
    assert work.missing["tokens"].tolist() == sorted(LENGTHS, reverse=True)
    for row, place, tokens in work.missing.tolist():
        assert scoring.samples_to_score(trl_rows()[row])[place]["input_ids"].shape == (1, tokens)


@pytest.mark.parametrize("as_table", [False, True], ids=["list", "table"])
@pytest.mark.parametrize("rows", [*PACKED.values(), ROWS], ids=[*PACKED, "alone"])
def test_rows_that_are_read_many_at_once_have_the_keys_that_they_have_alone(rows, as_table):
    alone = [(number, sample) for number, row in enumerate(rows) for sample in samples_in(row)]
    wanted = [(number, *sample_keys(sample, 16)) for number, sample in alone]
    assert len(wanted) == 3
    # A row without anything beside, among rows that have more, and one that is longer than all.
    plain = {"input_ids": [*IDS[0], 9, 9], "labels": [-100, *IDS[0][1:], 9, 9]}
    for more in ([], [plain] if rows is ROWS or not as_table else []):
        every = [*rows, *more]
        data = Dataset.from_list(every) if as_table else every
        found = [
            (first + int(row[sample.begin]), [sample.key], [sample.responses])
            for first, batch, row in rows_of(data)
            for sample in keyed_samples(batch, 16)
        ]
        assert found[:3] == wanted
        assert [key for _, key, _ in found[3:]] == [sample_keys(as_batch(row), 16)[0] for row in more]


@pytest.mark.parametrize("as_table", [False, True], ids=["list", "table"])
def test_rows_that_are_padded_on_the_left_have_the_keys_that_they_have_alone(as_table):
    rows = [
        {"input_ids": [9, 9, *row["input_ids"]], "labels": [-100, -100, *row["labels"]],
         "attention_mask": [0, 0, *[1] * len(row["input_ids"])]}
        for row in ROWS
    ]  # fmt: skip
    data = Dataset.from_list(rows) if as_table else rows
    found = {sample.key for _, batch, _ in rows_of(data) for sample in keyed_samples(batch, 16)}
    assert found == KEYS


def test_a_row_without_a_token_is_a_sample_without_response():
    for row in ({"input_ids": [], "labels": []}, {"input_ids": [5, 6], "labels": [5, 6], "attention_mask": [0, 0]}):
        (sample,) = samples_in(row)
        assert sample_keys(sample, 16) == ([], [])


class Both(ProcessorMixin):
    """A processor of text and images."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer


class LikeMistral(Letters):
    """A tokenizer that has another object by the name that a processor has for its tokenizer."""

    tokenizer = object()


def test_the_tokenizer_of_a_trainer_may_be_in_a_processor():
    letters, mistral = Letters(), LikeMistral()
    assert tokenizer_of(SimpleNamespace(processing_class=letters)) is letters
    assert tokenizer_of(SimpleNamespace(processing_class=Both(letters))) is letters
    assert tokenizer_of(SimpleNamespace(processing_class=mistral)) is mistral


@pytest.mark.parametrize(("found", "said"), [(None, "None"), (Both(None), "a Both"), (object(), "a object")])
def test_a_trainer_without_tokenizer_is_told_what_is_needed(found, said):
    with pytest.raises(ValueError, match=rf"^processing_class: it is {said}, and selection needs a tokenizer"):
        tokenizer_of(SimpleNamespace(processing_class=found))
