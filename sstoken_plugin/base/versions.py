"""Tells a framework in a version that no test has run on."""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, version


def refuse_unsupported(package: str, shown: str, oldest: tuple[int, ...], newest: tuple[int, ...]) -> None:
    """Refuse a framework that no test has run on, before anything of it is imported.

    Args:
        package: its name on PyPI; `SSTOKEN_ANY_` and that name in capitals is the variable that lets any version pass.
        shown: its name in sentences.
        oldest: the oldest release that the tests ran on, as many of its numbers as count.
        newest: the newest one, likewise.

    Raises:
        ValueError: one sentence with the supported range.
    """
    variable = f"SSTOKEN_ANY_{package.upper().replace('-', '_')}"
    try:
        installed = version(package)
    except PackageNotFoundError:
        installed = "one without a version"
    found = re.match(r"\d+(\.\d+)*", installed)
    release = tuple(map(int, found[0].split(".")))[: len(oldest)] if found else ()
    if oldest <= release <= newest or os.environ.get(variable) == "1":
        return
    bounds = dict.fromkeys(".".join(map(str, bound)) for bound in (oldest, newest))
    raise ValueError(
        f"{package}: sstoken runs on {shown} {' to '.join(bounds)}, and this is {installed}; install one of those, "
        f"look for a newer sstoken-plugin, or set {variable}=1 in the environment to try it at your own risk."
    )
