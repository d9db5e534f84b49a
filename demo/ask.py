"""Ask a model with and without its trained adapter, and show the answers side by side.

python demo/ask.py MODEL ADAPTER [QUESTION ...]
"""

import sys

import torch
from data import HELD_OUT
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()


def answer(model: torch.nn.Module, tokenizer: object, question: str) -> str:
    """Return the model's most likely answer of at most 48 tokens."""
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def main(base: str, adapter: str, questions: list[str]) -> None:
    """Print the answers before and after the training."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    for question in questions:
        with model.disable_adapter():
            before = answer(model, tokenizer, question)
        after = answer(model, tokenizer, question)
        print(f"\nQuestion: {question}")
        for name, text in (("before", before), ("after", after)):
            print("".join(f"  {name:>6} | {line}\n" for line in text.splitlines()), end="")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:] or HELD_OUT)
