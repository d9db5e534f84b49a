"""Run by torchrun: the core of the plugin on models that an engine shards, and on the same models under DDP.

Axolotl cannot start FSDP2 or DeepSpeed on a CPU, so this drives the lines that the trainer drives. Arguments: a folder,
where what each rank saw goes into rank-N.pt for tests/test_sharding.py to compare, and the engines.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from sstoken_plugin.engine.attention import PromptAttention
from sstoken_plugin.engine.run import Run
from sstoken_plugin.engine.sharding import parts, wholes
from sstoken_plugin.engine.step import Phase, TokenSelection
from sstoken_plugin.history.build import build_history
from sstoken_plugin.selection.config import SSTokenConfig

CONFIG = LlamaConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
STEPS, ACCUMULATION = 3, 2


def full(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(CONFIG).train()


def lora(seed: int = 0) -> Any:
    model = full()
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")).train()


def trained_lora() -> Any:
    """An adapter with an effect."""
    model = lora(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def batches(rank: int) -> list[dict[str, torch.Tensor]]:
    """Batches of another width on each rank; one of rank 1 has no response token."""
    generator = torch.Generator().manual_seed(100 + rank)
    found = []
    for number in range(STEPS * ACCUMULATION):
        width = 12 + rank
        ids = torch.randint(3, 97, (2, width), generator=generator)
        labels = ids.clone()
        labels[:, : width if (rank, number) == (1, 2) else 4] = -100
        found.append({"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)})
    return found


class Whole:
    """Data parallel training as accelerate drives it; an engine is what wraps the model, and steps."""

    def __init__(self, model: Any):
        self.model = self.wrap(model)
        self._optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)

    def wrap(self, model: Any) -> Any:
        return DistributedDataParallel(model)

    def learn(self, loss: torch.Tensor, *, is_last: bool) -> None:
        (loss / ACCUMULATION).backward()
        if is_last:
            self._optimizer.step()
            self._optimizer.zero_grad()


class Fsdp2(Whole):
    """Sharded as Axolotl does: the matrices of adapters, each decoder layer, the root."""

    def wrap(self, model: Any) -> Any:
        for layer in [module for module in model.modules() if type(module).__name__ == "LlamaDecoderLayer"]:
            for inner in layer.modules():
                if getattr(inner, "lora_A", None):
                    fully_shard(inner.lora_A["default"])
                    fully_shard(inner.lora_B["default"])
            fully_shard(layer)
        return fully_shard(model)


class Zero3:
    """DeepSpeed's stage 3."""

    def __init__(self, model: Any):
        import deepspeed

        settings = {
            "zero_optimization": {"stage": 3},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": ACCUMULATION,
        }
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        self.model = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]

    def learn(self, loss: torch.Tensor, *, is_last: bool) -> None:
        self.model.backward(loss)
        self.model.step()


ENGINES = {"ddp": Whole, "fsdp": Fsdp2, "zero3": Zero3}
# Refused with a sentence.
UNFIT_FOR_ZERO3 = ("full checkpoint", "adapter", "cached")


class Tokenizer:
    """All that the core asks of a tokenizer."""

    def __len__(self) -> int:
        return CONFIG.vocab_size


def train(model: Any, engine: Any, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train and return what this rank saw."""
    config = SSTokenConfig.from_block({"ratio": 0.5, "warmup_ratio": 0.0, "keep_eos": False, **settings})
    engine = engine(model)
    wrapped = engine.model
    cache = Path(config.cache_folder) if config.cache_folder else None
    losses = build_history(config, Run(str(folder / "base")), model, Tokenizer(), cache=cache)
    history = None if losses is None else losses.history
    selection = TokenSelection(config, PromptAttention.of(model, -1), losses, end_tokens=[2])
    seen: dict[str, Any] = {"loss": [], "kept": [], "rel": [], "attention": [], "hits": []}
    for number, batch in enumerate(batches(dist.get_rank())):
        # An evaluation leaves weights of the root gathered.
        with torch.no_grad():
            wrapped.eval()
            wrapped(**batch)
        wrapped.train()
        step = selection.begin(model, batch, Phase.of(config))
        with step.observed():
            outputs = wrapped(**{key: value for key, value in batch.items() if key != "labels"})
        loss = step.loss(outputs)
        is_last = (number + 1) % ACCUMULATION == 0
        engine.learn(loss, is_last=is_last)
        found = (loss.detach(), step.kept, step.scores.rel, step.scores.attention, step.cached_samples)
        for key, value in zip(seen, found, strict=True):
            seen[key].append(value)
        if is_last and history is not None:
            history.after_step(model, (number + 1) // ACCUMULATION)
    if history is not None:
        seen["memory"] = history.memory
        seen["digest"] = history.digest(model)
        seen["tensors"] = {name: tensor.clone() for name, tensor in history.tensors(model)}
        # As a checkpoint of another run: the whole tensors are on every rank.
        tensors = broadcast({name: tensor + 1 for name, tensor in seen["tensors"].items()})
        history.restore(tensors, model)
        seen["restored"] = {name: tensor.clone() for name, tensor in history.tensors(model)}
    names = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    held = {name: tensor.clone() for name, tensor in parts(model, names)}
    seen["weights"] = broadcast(dict(wholes(model, held, names)))
    return seen


def broadcast(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give every rank what rank 0 has."""
    shared = [tensors]
    dist.broadcast_object_list(shared)
    return shared[0]


def main(out: Path, engines: list[str]) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    if rank == 0:
        full().save_pretrained(out / "base")
        full(7).save_pretrained(out / "other")
        trained_lora().save_pretrained(out / "adapter")
    dist.barrier()
    histories = {
        "initial": {},
        "ema": {"history": "ema", "history_ema_decay": 0.5},
        "snapshot": {"history": "snapshot", "history_update_steps": 2},
        "full checkpoint": {"history": str(out / "other")},
        "adapter": {"history": str(out / "adapter")},
        "cached": {"history": str(out / "other"), "history_cache": "cache"},
        "attention": {"selector": "attention"},
    }
    results: dict[str, Any] = {}
    for way, make in {"full": full, "lora": lora}.items():
        for kind, settings in histories.items():
            for engine in ("ddp", *engines):
                if engine == "zero3" and kind in UNFIT_FOR_ZERO3:
                    continue
                if "history_cache" in settings:
                    settings["history_cache"] = str(out / f"cache-{way}-{engine}")
                    if rank == 0:
                        # Losses of one rank's batches only, so that the ranks differ in what they must compute.
                        fill(make(), settings, out)
                    dist.barrier()
                results[f"{way}, {kind}, {engine}"] = train(make(), ENGINES[engine], settings, out)
    torch.save(results, out / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def fill(model: Any, settings: dict[str, Any], folder: Path) -> None:
    """Keep the losses of every second batch of rank 0."""
    config = SSTokenConfig.from_block(settings)
    cache = Path(str(config.cache_folder))
    losses = build_history(config, Run(str(folder / "base")), model, Tokenizer(), trains=False, cache=cache)
    assert losses is not None
    assert losses.store is not None
    selection = TokenSelection(config, None, losses, end_tokens=[2])
    for batch in batches(0)[::2]:
        selection.begin(model, batch, Phase.of(config))
    losses.store.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
