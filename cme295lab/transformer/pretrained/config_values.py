"""Values that somebody else wrote about a model, read one by one with errors that name the file and the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ConfigValues:
    """The values of a config.json, or of the metadata of a GGUF file.

    A value that is null counts as one that is not there.

    Args:
        values: name -> value.
        where: the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def get(self, key: str, default: Any = None) -> Any:
        """A value as it is, or the default if it is not there."""
        value = self.values.get(key)
        return default if value is None else value

    def count(self, key: str, default: int | None = None) -> int:
        """A positive integer; raises a ValueError if it is none, or is not there and has no default."""
        value = self.get(key, default)
        if value is None:
            raise ValueError(f"{self.where} has no {key!r}, which says the shape of the model: is the file complete?")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{self.where}: {key} must be a positive integer, got {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; raises a ValueError if it is none."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{self.where}: {key} must be a positive number, got {value!r}")
        return float(value)

    def switch(self, key: str, default: bool) -> bool:
        """True or False; raises a ValueError if it is neither."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.where}: {key} must be true or false, got {value!r}")
        return value

    def require(self, key: str, allowed: tuple[Any, ...], why: str, default: Any) -> None:
        """Raise a ValueError unless the value is one of those that this library can do."""
        value = self.get(key, default)
        if value not in allowed:
            raise ValueError(
                f"{self.where}: {key} is {value!r}, and this library reads models with "
                f"{' or '.join(map(repr, allowed))} only: {why}"
            )
