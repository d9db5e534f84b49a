"""What the rest of a YAML must not ask for beside token selection, why, and the way out: each refusal is one sentence.

docs/support.md lists them, written by scripts/write_examples.py. When each of them holds is in compatibility.py.
"""

from __future__ import annotations

from sstoken_plugin.base import refusal
from sstoken_plugin.base.refusal import Refusal

# Key of the YAML: why it cannot run beside the selection.
REFUSED = {
    "rl": "trains on preferences or rewards, not on labelled tokens",
    "reward_model": "trains a reward model, which has no per-token loss",
    "process_reward_model": "trains a reward model, which has no per-token loss",
    "trainer_cls": "replaces the trainer that the selection is part of",
    "use_eaft": "brings its own loss over all response tokens",
    "use_dft": "brings its own loss over all response tokens",
    "liger_use_token_scaling": "multiplies the loss of each token by its probability",
    "diffusion_lm": "trains a diffusion model, whose tokens have no left-to-right loss (DiffusionPlugin sets it from "
    "`diffusion:`)",
    "diffusion_decision": "trains a diffusion model, whose tokens have no left-to-right loss",
    "orpo_alpha": "brings its own loss over pairs of answers",
    "relora": "merges the adapter into the base weights, so that the history is lost",
    "pretraining_dataset": "streams text without prompts and labels, which has not been tested with selection",
    "streaming": "streams its data, which has not been tested with selection",
    # Without it Axolotl trains on text alone, also where the model can see.
    "processor_type": "feeds images, audio or video to the model, and selection reads text tokens only",
    "label_smoothing_factor": "changes the loss of a token, which selection compares with the history's",
}
# Each of them sets the others, in the releases that know them.
_SPLIT = (
    "splits a sample over ranks, and selection ranks whole samples (it is set by context_parallel_size, by size in the "
    "block context_parallel, and by sequence_parallel_degree)"
)
# Keys, one inside a block with a dot, that split a sample or a layer over so many ranks.
REFUSED_ABOVE_ONE = {
    "context_parallel_size": _SPLIT,
    "context_parallel.size": _SPLIT,
    "sequence_parallel_degree": _SPLIT,
    "expert_parallel_size": "splits the experts over ranks, which has not been tested with selection",
    "tensor_parallel_size": "splits the output head over ranks, which has not been tested with selection",
}
# Adapters that are out of force once PEFT has switched them off. Plugins of Axolotl may bring others, such as mixlora.
ADAPTERS = ("lora", "qlora", "mora")
# Keys that change losses and not the hash by which a cache tells one history from another.
REFUSED_WITH_CACHE = ("scaling_softmax", "qat", "fp8")
# Ways of training that should work and have not been run on what they are made for: docs/support.md.
UNTESTED = (
    "fsdp_config", "deepspeed", "tiled_mlp", "fp8", "qat", "nvfp4_merge_aware", "llmcompressor",
    "dense_mixer", "dp_shard_size", "fa_varlen_kwargs_in_collator", "cut_cross_entropy_accum_c_fp32", "optimizer: scao",
)  # fmt: skip
WITHOUT = "take sstoken out of `plugins:`"
ALWAYS = [Refusal(key, reason, way_out=f"remove `{key}` or {WITHOUT}") for key, reason in REFUSED.items()]
ABOVE_ONE = [Refusal(key, reason, "above 1", f"remove it or {WITHOUT}") for key, reason in REFUSED_ABOVE_ONE.items()]
ADAPTER = Refusal(
    "adapter",
    "may train parts that stay in force when it is switched off, and the history would not be the first model",
    f"any but {', '.join(ADAPTERS)}",
    f"set `adapter: lora` or `adapter: qlora`, or {WITHOUT}",
)
FSDP1 = Refusal(
    "fsdp_version: 1",
    refusal.FSDP1,
    "up to Axolotl 0.19 also `fsdp_config` without a version",
    f"set `fsdp_version: 2` beside `fsdp_config:`, or {WITHOUT}",
)
PACKING = Refusal(
    "attn_implementation",
    "lets the samples of a packed row see each other in this release of Axolotl, and selection scores a sample as if "
    "alone",
    "beside `sample_packing`: none named; in Axolotl 0.17 also sdpa and eager",
    "set `attn_implementation: flash_attention_2` (from Axolotl 0.18 on also sdpa or eager), or `sample_packing: "
    "false`",
)
LISA = Refusal(
    "lisa_n_layers",
    "switches layers on and off while the history keeps the weights that train at the start",
    "where a history ranks",
    "remove it, or use sstoken.selector: attention, which needs no history",
)
ZERO_3 = {
    key: Refusal(f"sstoken.{key}", refusal.ZERO_3, case, refusal.ZERO_3_WAY_OUT)
    for key, case in (("history", "a path, under DeepSpeed ZeRO-3"), ("history_cache", "under DeepSpeed ZeRO-3"))
}
WITH_CACHE = [
    Refusal(
        key,
        "changes losses, and sstoken.history_cache would give them to runs without it",
        "beside `sstoken.history_cache`",
        "remove one of the two",
    )
    for key in REFUSED_WITH_CACHE
]
# Keys that replace base weights before training.
BASE_CHANGING = [
    Refusal(
        key,
        "changes the base weights that the adapter in sstoken.history needs",
        f"{case}beside an adapter folder as `sstoken.history`",
        f"remove {key}, or set history: initial",
    )
    for key, case in (
        ("peft_init_lora_weights", "any but a plain one, "),
        ("peft.loftq_config", ""),
        ("peft_layer_replication", ""),
        ("reinit_weights", ""),
    )
]
OTHER_TRAINER = Refusal(
    "plugins",
    "brings its own trainer, and so does sstoken",
    "another plugin with a trainer",
    "remove one of them from `plugins:`",
)

# Everything outside the `sstoken:` block that is refused beside it.
REFUSALS = (
    *ALWAYS, *ABOVE_ONE, ADAPTER, FSDP1, PACKING, LISA, OTHER_TRAINER, *WITH_CACHE, *ZERO_3.values(),
    *BASE_CHANGING,
)  # fmt: skip
