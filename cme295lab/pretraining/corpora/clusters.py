"""Groups of things that are linked, however long the chain between them (union-find)."""

from __future__ import annotations

from collections.abc import Iterable


def clusters_of(num_members: int, links: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The groups of at least two that links make of the numbers below `num_members`.

    Args:
        num_members: how many things there are.
        links: pairs of them.

    Returns:
        Groups, each in rising order, in the order of their first members.

    Example:
        >>> clusters_of(6, [(4, 1), (2, 3), (4, 5)])
        [[1, 4, 5], [2, 3]]
    """
    parent = list(range(num_members))

    def root(member: int) -> int:
        while parent[member] != member:
            parent[member] = parent[parent[member]]  # halve the path for whoever comes next
            member = parent[member]
        return member

    for a, b in links:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for member in range(num_members):
        groups.setdefault(root(member), []).append(member)
    return [group for group in groups.values() if len(group) > 1]
