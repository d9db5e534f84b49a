"""What the plugin does with a family of models, against what the family does itself.

Each check gives a finding: None where it is right, else one line that says what is not. The tests assert them and
`scripts/write_support.py` writes them into the documentation.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from families import CANNOT, SPECIAL, Family
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedConfig

from sstoken_plugin.axolotl.run import NAMES, run_of
from sstoken_plugin.engine.attention import PromptAttention
from sstoken_plugin.engine.losses import token_nll
from sstoken_plugin.engine.step import Phase, ScoredStep, TokenSelection
from sstoken_plugin.history.build import build_history
from sstoken_plugin.history.losses import HistoryLosses
from sstoken_plugin.selection.config import SSTokenConfig
from sstoken_plugin.selection.samples import BatchLayout

TOLERANCE = 1e-5
# Between logits of two kinds of attention: far above what layers add up to, far below another mask.
ROUNDING = 1e-3
OUT_OF_REACH = "out of reach"
REFUSED = "refused: "
NOT_EVEN_PLAIN = "plain training fails too"


@dataclass
class Findings:
    """What is not right with a family; None where it is right, or where it was not asked.

    After a refusal of the loss nothing is asked but the adapter, under which it must be refused too.

    Attributes:
        fails: why the model itself cannot be trained on text alone; nothing else is known then.
        loss: the loss when everything is kept, against the model's own.
        added: likewise with every loss that the model can add to it; "none" if it adds none,
            `NOT_EVEN_PLAIN` if it fails to.
        attention: prompt attention against the model's attention matrices; `OUT_OF_REACH` if we say so ourselves.
        adapter: history, gradient and a step of training under LoRA; `NOT_EVEN_PLAIN` if plain training fails there.
        trace: what a forward pass left behind.
    """

    fails: str | None = None
    loss: str | None = None
    added: str | None = None
    attention: str | None = None
    adapter: str | None = None
    trace: str | None = None

    @property
    def refusal(self) -> str | None:
        """The plugin's sentence, as it is for all models, if it refuses the family with and without LoRA."""
        found = {in_general(finding or "") for finding in (self.loss, self.adapter)}
        sentence = found.pop()
        return sentence if sentence.startswith(REFUSED) and not found else None


def samples() -> dict[str, Tensor]:
    """Two samples of random tokens with prompts, padded right."""
    tokens = torch.randint(3, SPECIAL, (2, 13), generator=torch.Generator().manual_seed(1))
    column, length, prompt = torch.arange(13), torch.tensor([[13], [9]]), torch.tensor([[6], [3]])
    real = column < length
    return {
        "input_ids": torch.where(real, tokens, 0),
        "attention_mask": real.long(),
        "labels": torch.where(real & (column >= prompt), tokens, -100),
    }


def inputs_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch without labels."""
    return {key: value for key, value in batch.items() if key != "labels"}


def told(error: Exception) -> str:
    """An exception in one line; that of the plugin, which names a key of the YAML, as a refusal."""
    if isinstance(error, ValueError) and re.match("base_model: |.*sstoken[.]", str(error)):
        return f"{REFUSED}{error}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].strip()


def in_general(refusal: str) -> str:
    """A refusal without what differs from model to model."""
    return re.sub(r" \([\d.]+ for [\d.]+\)", "", re.sub(r"(?<=base_model: )\w+", "the model", refusal))


def examine(family: Family) -> Findings:
    """All findings of a family."""
    batch, found = samples(), Findings()
    try:
        config = family.config()
        model = build_for_training(family, config)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        plain = plain_loss(model, batch)
        plain.backward()
        model.zero_grad()
    except Exception as error:
        return Findings(fails=told(error))
    for aspect, check in (
        ("loss", lambda: loss_finding(model, batch)),
        ("attention", lambda: attention_finding(family, config, model.eval(), batch)),
        ("added", lambda: added_finding(family, config, plain.item(), batch)),
        ("trace", lambda: trace_finding(model, state)),
        ("adapter", lambda: adapter_finding(model.train(), batch)),
    ):
        if aspect != "adapter" and (found.loss or "").startswith(REFUSED):
            continue
        try:
            setattr(found, aspect, check())
        except Exception as error:
            setattr(found, aspect, told(error))
    return found


def build_for_training(family: Family, config: Any) -> Any:
    """A model with the kind of attention that it is trained with on a CPU, in training mode."""
    # sdpa leaves soft caps out.
    is_capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    if family.model_class._supports_sdpa and not is_capped:
        try:
            return family.build(config, "sdpa").train()
        except ValueError as error:
            # Some classes support it and one of their parts does not.
            if "scaled_dot_product_attention" not in str(error):
                raise
    return family.build(config, "eager").train()


def plain_loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss of plain training."""
    torch.manual_seed(0)
    return model(**batch, use_cache=False).loss


def scored(
    model: Any,
    batch: Mapping[str, Tensor],
    selector: str,
    attention: PromptAttention | None = None,
    history: HistoryLosses | None = None,
) -> tuple[ScoredStep, Tensor]:
    """A step of a selection that keeps everything, and its loss."""
    torch.manual_seed(0)
    settings = SSTokenConfig(selector=selector, ratio=1.0)
    step = TokenSelection(settings, attention, history, [2], names=NAMES).begin(model, batch, Phase.of(settings))
    with step.observed():
        outputs = model(**inputs_of(batch), use_cache=False)
    return step, step.loss(outputs)


def our_loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss of a selection that keeps everything."""
    return scored(model, batch, "all")[1]


def difference(ours: Tensor, own: Tensor) -> float:
    """How far apart two tensors are, relative to the larger of the second."""
    return float((ours - own).abs().max() / own.abs().max().clamp(min=1e-30))


def loss_finding(model: Any, batch: Mapping[str, Tensor]) -> str | None:
    """Compare the loss when everything is kept with the model's own."""
    own, ours = plain_loss(model, batch), our_loss(model, batch)
    return None if difference(ours, own) <= TOLERANCE else f"{ours.item():.4f}, its own {own.item():.4f}"


def switch_on_added_losses(config: Any) -> None:
    """Let a model add every loss that its configuration has a weight for."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            switch_on_added_losses(value)
        elif name == "output_router_logits":
            setattr(config, name, True)
        elif re.search("loss.*(coef|weight|factor)|(coef|weight|factor).*loss", name) and isinstance(value, float):
            setattr(config, name, 0.5)


def added_finding(family: Family, config: Any, plain: float, batch: Mapping[str, Tensor]) -> str | None:
    """Compare as `loss_finding` does, with every loss that the model can add."""
    config = copy.deepcopy(config)
    switch_on_added_losses(config)
    model = build_for_training(family, config)
    try:
        own = plain_loss(model, batch).item()
    except Exception:
        return NOT_EVEN_PLAIN
    if abs(own - plain) <= TOLERANCE * abs(plain):
        return "none"
    return loss_finding(model, batch)


def attention_finding(family: Family, config: Any, model: Any, batch: Mapping[str, Tensor]) -> str | None:
    """Compare prompt attention with the model's own matrices, in the last layer that sees the whole sample."""
    layout, eager = BatchLayout.of(batch), family.build(config, "eager")
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        kinds = [kind(**inputs_of(batch), use_cache=False).logits[real] for kind in (model, eager)]
    # In some releases sparse attention leaves something else out under sdpa, and of that there are no matrices.
    if difference(*kinds) > ROUNDING:
        model = eager
    try:
        probe = PromptAttention.of(model, -1)
        with torch.no_grad():
            step, _ = scored(model, batch, "attention", probe)
    except ValueError as error:
        return OUT_OF_REACH if "cannot be measured" in str(error) else told(error)
    with torch.no_grad():
        plain = model(**inputs_of(batch), use_cache=False).logits
        with probe.measure(layout.prompt):
            measured = model(**inputs_of(batch), use_cache=False).logits
        if not torch.equal(measured, plain):
            return f"measuring in {probe.layer.name} changes the logits"
        outputs = eager(**inputs_of(batch), use_cache=False, output_attentions=True)
    # Layers with linear attention give none, or one of another shape.
    matrices = [m for m in outputs.attentions or () if m is not None and m.shape[-2:] == layout.shape[-1:] * 2]
    if not matrices:
        return "the model returns no matrices"
    visible = (real[:, :, None] & real[:, None, :]).tril()
    whole = [m for m in matrices if bool((m.mean(1)[visible] > 0).all())]
    expected = (whole or matrices)[-1].mean(1)[..., : layout.shape[1]] @ layout.prompt[:, :, None].float()
    assert step.scores.attention is not None, "not measured"
    ours, own = step.scores.attention, expected.flatten()[layout.position]
    # With sinks behind the softmax the model returns its matrix from before they take their share.
    is_before_sinks = hasattr(probe.layer.module, "sinks") and bool(matrices[-1].sum(-1).min() > 1 - TOLERANCE)
    error = float((ours - own).clamp(min=0).max() if is_before_sinks else (ours - own).abs().max())
    if error > TOLERANCE:
        return f"off by {error:.4f} in {probe.description}; {len(whole)} of {len(matrices)} see the whole sample"
    return None if own.std() > 0.01 else "says little: attention hardly differs between tokens"


def trace_finding(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Tell which weights forward passes have changed."""
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, state[name])]
    return f"{len(changed)} tensors changed, {changed[0]} first" if changed else None


def linear_layers(model: Any) -> list[str]:
    """The linear layers of the language model that an adapter can stand beside."""
    return [
        name
        for name, module in model.named_modules()
        if re.fullmatch("(Falcon)?Linear|Conv1D", type(module).__name__)
        and module is not model.get_output_embeddings()
        # peft refuses the last of these beside a state-space layer.
        and not re.search("vision|visual|audio|speech|image|out_proj", name)
    ]


def adapter_finding(model: Any, batch: Mapping[str, Tensor]) -> str | None:
    """Compare history, gradients and one step of AdamW under LoRA with the base model and with plain training."""
    layout = BatchLayout.of(batch)
    plain = copy.deepcopy(model).eval()
    torch.manual_seed(0)
    adapted: Any = get_peft_model(model.train(), LoraConfig(r=2, target_modules=linear_layers(model)))
    history = build_history(SSTokenConfig(), run_of({}), adapted, tokenizer=None)
    with torch.no_grad():
        logits = plain(**inputs_of(batch), use_cache=False).logits
    base = token_nll(logits.flatten(0, 1)[layout.logit_position], layout.target)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    for parameter in trained:
        nn.init.normal_(parameter, std=0.1)
    start = [parameter.detach().clone() for parameter in trained]
    try:
        gradient, end = after_step(trained, plain_loss(adapted, batch))
    except Exception:
        return NOT_EVEN_PLAIN
    if not gradient.any():
        return "no gradient"
    for parameter, first in zip(trained, start, strict=True):
        parameter.data.copy_(first)
    step, loss = scored(adapted, batch, "rel", history=history)
    our_gradient, our_end = after_step(trained, loss)
    assert step.scores.history is not None, "no history"
    for what, ours, own in (
        ("history", step.scores.history, base),
        ("gradient", our_gradient, gradient),
        ("weights", our_end, end),
    ):
        if difference(ours, own) > TOLERANCE:
            return f"{what} off by {difference(ours, own):.1e}"
    return None


def after_step(trained: list[Any], loss: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of a loss, and the weights after a step of AdamW with it."""
    # With a smaller epsilon the first step is as long for a gradient of rounding errors as for any other.
    optimizer = torch.optim.AdamW(trained, lr=0.01, eps=1e-2)
    optimizer.zero_grad()
    loss.backward()
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = torch.cat([part.flatten() for part in gradient]).clone()
    optimizer.step()
    return flat, torch.cat([p.detach().flatten() for p in trained])


def verdict(family: Family, found: Findings) -> str:
    """Return what the findings of a family come to, in words."""
    if found.fails is not None:
        reasons = [reason for reason, names in CANNOT.items() if family.name in names]
        return f"not made tiny: it {reasons[0] if reasons else 'fails: ' + found.fails}"
    if found.refusal is not None:
        return found.refusal
    wrong = [
        f"{aspect}: {finding}"
        for aspect, finding in vars(found).items()
        if finding not in (None, "none", OUT_OF_REACH, NOT_EVEN_PLAIN)
    ]
    if wrong:
        return f"**wrong**: {'; '.join(wrong)}"
    words = ["right"]
    if found.attention == OUT_OF_REACH:
        words.append("prompt attention out of reach, so `selector: rel`")
    if found.adapter == NOT_EVEN_PLAIN:
        words.append("under LoRA plain training fails too")
    if found.added == NOT_EVEN_PLAIN:
        words.append("with the losses that it can add plain training fails too")
    return "; ".join(words)
