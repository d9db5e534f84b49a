"""No picture is worth a training: what fails on the way to one is told, and left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sstoken_plugin.base.logs import logger
from sstoken_plugin.base.visible_text import in_short

LOG = logger(__name__)

Result = TypeVar("Result")


def attempt(loss: str, work: Callable[[], Result]) -> Result | None:
    """Do work that no other rank waits for; None, and a warning, if it fails.

    Args:
        loss: what there is not in that case, in words.
        work: what to do.
    """
    try:
        return work()
    except Exception as error:
        LOG.warning("ssToken: %s: %s.", loss, in_short(error))
        return None
