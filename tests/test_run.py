"""What a run is to the selection: read from Axolotl's YAML, and named in the words of whatever trainer it runs in."""

import pytest
import torch
from chosen_families import LLAMA, build
from datasets import Dataset

from sstoken_plugin.axolotl.run import run_of
from sstoken_plugin.engine.kernels import cut_cross_entropy
from sstoken_plugin.engine.own_loss import OwnLoss
from sstoken_plugin.engine.run import Names, Run
from sstoken_plugin.training.survey import Survey, refuse_rows

ROW = {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}
PADDED = Dataset.from_list([{**ROW, "attention_mask": [1, 1, 1, 0]}])
SHARED = Dataset.from_list([{**ROW, "position_ids": [0, 1, 0, 1], "attention_mask": [1, 1, 1, 1]}])


def test_a_yaml_without_a_key_is_a_run_without_what_it_asks_for():
    run = run_of({"base_model": "model"})
    assert (run.base_model, run.seed, run.packs, run.starts_from, run.kernels) == ("model", 0, False, None, ())
    assert run.plain_init
    assert run.eot_tokens == ()


def test_a_run_has_what_the_yaml_says():
    cfg = {"base_model": "model", "seed": 7, "sample_packing": True, "lora_model_dir": "adapter", "torch_dtype":
           torch.bfloat16, "revision_of_model": "v2", "eot_tokens": ["<end>"]}  # fmt: skip
    run = run_of({**cfg, "peft_init_lora_weights": "pissa", "cut_cross_entropy": True, "chunked_cross_entropy": True})
    assert (run.seed, run.packs, str(run.starts_from), run.revision) == (7, True, "adapter", "v2")
    assert (run.dtype, run.eot_tokens, run.plain_init) == (torch.bfloat16, ("<end>",), False)
    # Axolotl's own chunked loss gives no loss of single tokens.
    assert run.kernels == (cut_cross_entropy,)


NAMES = Names("TRL", model="model_name_or_path", data="dataset_name", packing="packing")


def test_sentences_about_data_name_the_settings_of_the_trainer(tokenizer):
    with pytest.raises(ValueError, match=r"^packing: 1 of 1 rows .* which TRL reads as text .* set packing: false\.$"):
        refuse_rows(PADDED, packed=True, names=NAMES)
    with pytest.raises(ValueError, match=r"^dataset_name: 1 of 1 rows .* where TRL does .* set packing: true to pack"):
        refuse_rows(SHARED, packed=False, names=NAMES)
    (warning,) = Survey(rows=2, relabelled=1).warnings(NAMES)
    assert "`dataset_name:`" in warning


def test_sentences_about_models_name_the_settings_of_the_trainer(monkeypatch):
    model = build(LLAMA)
    model.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.new_tensor(3.0)
    with pytest.raises(ValueError, match=r"^model_name_or_path: Llama.*or train without sstoken\.$"):
        OwnLoss.of(model, NAMES)
    with pytest.raises(ValueError, match=r"^model: Llama"):
        OwnLoss.of(model, Run("").names)
