"""Tells a framework in a version that no test has run on."""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, version


def release_of(package: str) -> tuple[int, ...]:
    """Return the numbers of an installed package's version, such as (0, 21, 0); () if it has none."""
    found = re.match(r"\d+(\.\d+)*", _installed(package))
    return tuple(map(int, found[0].split("."))) if found else ()


def refuse_unsupported(
    package: str, shown: str, oldest: tuple[int, ...], newest: tuple[int, ...], key: str = ""
) -> None:
    """Refuse a framework that no test has run on, before anything of it is imported.

    Args:
        package: its name on PyPI; `SSTOKEN_ANY_` and that name in capitals is the variable that lets any version pass.
        shown: its name in sentences.
        oldest: the oldest release that the tests ran on, as many of its numbers as count.
        newest: the newest one, likewise.
        key: the setting by which users asked for us; "" for the name of the package.

    Raises:
        ValueError: one sentence with the supported range.
    """
    variable = f"SSTOKEN_ANY_{package.upper().replace('-', '_')}"
    if oldest <= release_of(package)[: len(oldest)] <= newest or os.environ.get(variable) == "1":
        return
    bounds = dict.fromkeys(".".join(map(str, bound)) for bound in (oldest, newest))
    those = "one of those" if len(bounds) > 1 else "that one"
    raise ValueError(
        f"{key or package}: sstoken runs on {shown} {' to '.join(bounds)}, and this is {_installed(package)}; install "
        f"{those}, look for a newer sstoken-plugin, or set {variable}=1 in the environment to try it at your own risk."
    )


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "one without a version"
