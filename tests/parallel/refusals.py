"""What calls with bad input say, gathered on a rank."""

from collections.abc import Callable, Iterable
from typing import Any


def messages_of(calls: Iterable[Callable[[], Any]]) -> list[str]:
    """For each call its error's type and text, or "no error"."""
    messages = []
    for call in calls:
        try:
            call()
        except (TypeError, ValueError) as error:
            messages.append(f"{type(error).__name__}: {error}")
        else:
            messages.append("no error")
    return messages
