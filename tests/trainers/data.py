"""Chats as rows of tokens and labels, for trainers that take those."""

from __future__ import annotations

from typing import Any


def labelled(tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, list[int]]:
    """Tokenize a chat; what the assistant says, with the end of its turn, is labelled, and all else -100."""
    ids: list[int] = []
    labels: list[int] = []

    def ids_of(count: int, prompt: bool = False) -> list[int]:
        return tokenizer.apply_chat_template(messages[:count], add_generation_prompt=prompt, return_dict=False)

    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked, answered = ids_of(number, prompt=True), ids_of(number + 1)
        labels += [-100] * (len(asked) - len(ids))
        answer = answered[len(asked) :]
        end = len(answer) - answer[::-1].index(tokenizer.eos_token_id)
        labels += answer[:end] + [-100] * (len(answer) - end)
        ids = answered
    return {"input_ids": ids, "labels": labels}
