"""Values that were read from a file, and may be anything."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError


def checked(value: Any, kind: Any) -> Any:
    """Return a value that has the type it should have.

    Raises:
        ValueError: it has another one.
    """
    try:
        return TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}") from error
