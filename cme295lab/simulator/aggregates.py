"""Aggregates (`triton.language.core._aggregate`): classes whose fields are kernel values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cme295lab.simulator import frontend
from cme295lab.simulator.compound import Compound
from cme295lab.simulator.errors import KernelTypeError


class AggregateType:
    """A class made by `_aggregate`; calling it in a kernel makes an `Aggregate`."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.name = cls.__name__
        self.fields = frontend.aggregate_fields(cls)

    def make(self, args: Sequence[Any], kwargs: dict[str, Any], resolve: Callable[[Any], Any]) -> Aggregate:
        """Construct an instance: by the class's own `__init__`, run as Python, or field by field."""
        constructor = frontend.aggregate_constructor(self.cls)
        if constructor is None:
            return Aggregate(self, self._by_field(args, kwargs))
        draft = _Draft(self)
        constructor(draft, *args, **kwargs)
        missing = [n for n in self.fields if n not in draft.__dict__]
        if missing:
            raise KernelTypeError(f"the constructor of {self.name} did not set {', '.join(missing)}")
        return Aggregate(self, {n: resolve(frontend.constant_value(draft.__dict__[n])) for n in self.fields})

    def _by_field(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        defaults = getattr(self.cls, "__aggregate_defaults__", {})
        values = {n: frontend.constant_value(v) for n, v in defaults.items()}
        if len(args) > len(self.fields):
            raise KernelTypeError(f"{self.name} has {len(self.fields)} fields, got {len(args)} values")
        given = {**dict(zip(self.fields, args, strict=False)), **kwargs}
        unknown = [n for n in given if n not in self.fields]
        missing = [n for n in self.fields if n not in values and n not in given]
        if unknown or missing:
            raise KernelTypeError(
                f"{self.name} has the fields {', '.join(self.fields)}; "
                + (f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}")
            )
        return {n: given.get(n, values.get(n)) for n in self.fields}


class _Draft:
    """What a constructor writes its fields to."""

    def __init__(self, kind: AggregateType) -> None:
        self.__dict__["_kind"] = kind

    def __setattr__(self, name: str, value: Any) -> None:
        kind = self.__dict__["_kind"]
        if name not in kind.fields:
            raise KernelTypeError(f"{kind.name} has no field {name!r}")
        self.__dict__[name] = value


class Aggregate(Compound):
    """An instance: its fields cannot be assigned to."""

    def __init__(self, kind: AggregateType, fields: dict[str, Any]) -> None:
        self.kind = kind
        self.fields = fields

    def parts(self) -> tuple[Any, ...]:
        return tuple(self.fields.values())

    def with_parts(self, parts: Sequence[Any]) -> Aggregate:
        return Aggregate(self.kind, dict(zip(self.fields, parts, strict=True)))

    def matches(self, other: object) -> bool:
        return isinstance(other, Aggregate) and other.kind.cls is self.kind.cls

    def attribute(self, name: str, resolve: Callable[[Any], Any]) -> Any:
        """A field, or a method bound to this instance."""
        if name in self.fields:
            return self.fields[name]
        member = getattr(self.kind.cls, name, None)
        if member is None:
            raise KernelTypeError(f"{self.kind.name} has no field or method {name!r}")
        found = resolve(member)
        if hasattr(found, "owner"):
            found.owner = self
            return found
        return lambda *args, **kwargs: getattr(found, "function", found)(self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """A field, for compile-time functions, which run as Python."""
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"an aggregate has no field {name!r}")
