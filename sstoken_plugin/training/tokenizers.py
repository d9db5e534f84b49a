"""The tokenizer of a trainer."""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin


def tokenizer_of(trainer: Any) -> Any:
    """Return the tokenizer of a trainer, which may be part of a processor that reads images or sound too.

    Args:
        trainer: of transformers, or made from one.

    Raises:
        ValueError: it has none; one sentence with the key and the way out.
    """
    found = trainer.processing_class
    # Not of everything: the tokenizers of mistral-common hold another object by this name.
    tokenizer = getattr(found, "tokenizer", None) if isinstance(found, ProcessorMixin) else found
    if not hasattr(tokenizer, "decode"):
        what = "None" if found is None else f"a {type(found).__name__}"
        raise ValueError(
            f"processing_class: it is {what}, and selection needs a tokenizer to find the ends of turns and "
            "to write the tokens of the report; give the trainer processing_class=tokenizer."
        )
    return tokenizer
