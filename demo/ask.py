"""Ask a model questions; with an adapter, show its answers beside those of the model without it.

python demo/ask.py MODEL [--adapter DIR] [QUESTION ...]
"""

import argparse

import torch
from data import HELD_OUT
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()


def answer(model: torch.nn.Module, tokenizer: object, question: str) -> str:
    """Return the model's most likely answer of at most 40 tokens."""
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def main(base: str, adapter: str | None, questions: list[str]) -> None:
    """Print the answers before the training and, with an adapter, after it."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    answers = {"before": [answer(model, tokenizer, question) for question in questions]}
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).eval()
        answers["after"] = [answer(model, tokenizer, question) for question in questions]
    for index, question in enumerate(questions):
        print(f"\nQuestion: {question}")
        for name, texts in answers.items():
            print("".join(f"  {name:>6} | {line}\n" for line in texts[index].splitlines()), end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--adapter")
    parser.add_argument("questions", nargs="*")
    arguments = parser.parse_intermixed_args()  # questions may follow the option
    main(arguments.model, arguments.adapter, arguments.questions or HELD_OUT)
