"""Refuses what settings name as a folder and is none, before anything is loaded."""

from __future__ import annotations

import os
import re
import stat

from sstoken_plugin.base.files import expand
from sstoken_plugin.selection.config import HISTORIES, SSTokenConfig, nearest

ADAPTER_FILE, MODEL_FILE = "adapter_config.json", "config.json"


def refuse_unfit_names(config: SSTokenConfig) -> None:
    """Refuse settings that name no folder where one is needed.

    Raises:
        ValueError: one sentence that names the key and the fix.
    """
    if config.needs_history and config.history_is_path:
        refuse_unfit_history(config.history)
    if config.cache_folder is not None:
        refuse_unfit_cache(config.cache_folder)


def refuse_unfit_cache(path: str) -> None:
    """Refuse a path that losses cannot be kept in; it need not be there yet.

    Raises:
        ValueError: see `refuse_unfit_names`.
    """
    _refuse_no_local_path("history_cache", path)
    try:
        unfit = not stat.S_ISDIR(expand(path).stat().st_mode)
    except FileNotFoundError:
        # Yet to be made.
        unfit = False
    except (OSError, ValueError):
        unfit = True
    if unfit:
        raise ValueError(
            f"sstoken.history_cache: {path!r} cannot be a folder; name a folder that can be written to, or remove "
            "history_cache."
        )


def refuse_unfit_history(path: str) -> None:
    """Refuse a path that holds neither an adapter nor a checkpoint.

    Raises:
        ValueError: see `refuse_unfit_names`.
    """
    _refuse_no_local_path("history", path)
    folder = expand(path)
    if not os.path.isdir(folder):
        if re.fullmatch(r"[\w.-]+/[\w.-]+", path, re.ASCII):
            raise ValueError(
                f"sstoken.history: {path} is no folder; a model of a hub must be downloaded first, as by "
                f"`hf download {path} --local-dir FOLDER`."
            )
        word = nearest(path, HISTORIES)
        raise ValueError(
            f"sstoken.history: {path} is no folder, and none of {', '.join(HISTORIES)}; did you mean '{word}'?"
        )
    if not any((folder / name).exists() for name in (ADAPTER_FILE, MODEL_FILE)):
        raise ValueError(
            f"sstoken.history: {path} holds neither {ADAPTER_FILE} nor {MODEL_FILE}; name an adapter folder or a "
            "full checkpoint."
        )


def _refuse_no_local_path(key: str, path: str) -> None:
    if "://" in path:
        raise ValueError(
            f"sstoken.{key}: {path} is an address, and what is needed is a folder of this machine; name one, with a "
            "copy of what the address holds if there is anything."
        )
    if unknown := re.search(r"\$(\w+|\{[^}]*\})", str(expand(path))):
        raise ValueError(
            f"sstoken.{key}: {path}: there is no environment variable {unknown[0]}; set it, or write the folder out."
        )
