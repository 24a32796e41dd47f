"""How long a collective takes: the alpha-beta model, in which a message of n bytes takes alpha + n / bandwidth.

Alpha is the latency of a message, beta the time per byte. A ring all-reduce over p ranks has 2 (p-1) steps of a p-th of
the vector, a tree fewer steps of the whole vector, so rings win for long vectors and trees for short ones:

| all-reduce of n bytes | time |
|---|---|
| ring | 2 (p-1) alpha + 2 (p-1)/p n/bandwidth |
| tree (to the root, and back) | 2 ⌈log2 p⌉ (alpha + n/bandwidth) |
| recursive doubling | log2 p (alpha + n/bandwidth) |

Links have full bandwidth in both directions at the same time, and `bandwidth_bytes_per_s` is that of one direction. A
`Cluster` has fast links inside a node and slower ones between nodes. What is not in the model: links that calls share,
packets, switches that add up on the way, trees that cut the vector into chunks, and what a program does beside.

Bandwidths below are those of the standards. Latencies are orders of magnitude, since they depend on the software more
than on the wire; nobody should take a crossover from this table for more than that.

    >>> gradients = collective_time_s("all_reduce", 2 * 6.738e9, 8, nvlink("H100"))  # a 7B model in bf16
    >>> round(1000 * gradients, 1)  # ms
    52.4

Sources: Thakur, Rabenseifner, Gropp 2005; Patarasuk, Yuan 2009; NVIDIA nccl-tests, PERFORMANCE.md (bus bandwidth).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from cme295lab.hardware import Device, get_device

Algorithm = Literal["ring", "tree", "recursive_doubling"]
ONE_WAY = ("reduce_scatter", "all_gather", "broadcast", "reduce", "all_to_all")  # S (N-1)/N, sent and received
COLLECTIVES = ("all_reduce", *ONE_WAY)
NVLINK_LATENCY_S = 2e-6


@dataclass(frozen=True, kw_only=True)
class Link:
    """A connection between two ranks.

    Attributes:
        name: what it is called.
        latency_s: alpha, time of an empty message, in s.
        bandwidth_bytes_per_s: in one direction, while as much goes the other way.
        source: where the bandwidth comes from.
        confidence: "certain" if the bandwidth is in a standard or data sheet, else "likely". Latencies are never more
            than likely.

    Raises:
        ValueError: if the bandwidth is not positive or the latency negative.
    """

    name: str
    latency_s: float
    bandwidth_bytes_per_s: float
    source: str = ""
    confidence: Literal["certain", "likely"] = "likely"

    def __post_init__(self) -> None:
        if not (self.bandwidth_bytes_per_s > 0 and math.isfinite(self.bandwidth_bytes_per_s)):
            raise ValueError(f"bandwidth_bytes_per_s of {self.name!r} must be > 0, got {self.bandwidth_bytes_per_s}")
        if not (self.latency_s >= 0 and math.isfinite(self.latency_s)):
            raise ValueError(f"latency_s of {self.name!r} must be >= 0, got {self.latency_s}")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes of several GPUs: one kind of link inside a node, another between nodes.

    Attributes:
        inside: between GPUs of a node.
        between: of one network adapter.
        ranks_per_node: GPUs of a node.
        adapters_per_node: network adapters that the GPUs of a node share; None means one for each GPU.

    Raises:
        ValueError: if a count is below 1, or there are more adapters than GPUs.
    """

    inside: Link
    between: Link
    ranks_per_node: int = 8
    adapters_per_node: int | None = None

    def __post_init__(self) -> None:
        if self.ranks_per_node < 1:
            raise ValueError(f"ranks_per_node must be at least 1, got {self.ranks_per_node}")
        if not 1 <= self.adapters <= self.ranks_per_node:
            raise ValueError(
                f"adapters_per_node must be from 1 to ranks_per_node = {self.ranks_per_node}, got {self.adapters}"
            )

    @property
    def adapters(self) -> int:
        """Network adapters of a node."""
        return self.ranks_per_node if self.adapters_per_node is None else self.adapters_per_node

    @property
    def share(self) -> Link:
        """What each GPU gets of the network when all of its node send."""
        rate = self.between.bandwidth_bytes_per_s * self.adapters / self.ranks_per_node
        return Link(name=self.between.name, latency_s=self.between.latency_s, bandwidth_bytes_per_s=rate)


def _standard(name: str, gigabits_per_s: float, latency_s: float, source: str) -> Link:
    rate = gigabits_per_s * 1e9 / 8
    return Link(name=name, latency_s=latency_s, bandwidth_bytes_per_s=rate, source=source, confidence="certain")


_IBTA, _IEEE, _PCI = "InfiniBand Trade Association roadmap, 4 lanes", "IEEE 802.3", "PCI-SIG, 128b/130b coding"
LINKS = MappingProxyType({
    link.name: link
    for link in (
        _standard("InfiniBand HDR", 200, 5e-6, _IBTA),
        _standard("InfiniBand NDR", 400, 5e-6, _IBTA),
        _standard("Ethernet 10G", 10, 30e-6, _IEEE),
        _standard("Ethernet 25G", 25, 30e-6, _IEEE),
        _standard("Ethernet 100G", 100, 20e-6, _IEEE),
        _standard("PCIe 3.0 x16", 16 * 8 * 128 / 130, 5e-6, _PCI),
        _standard("PCIe 4.0 x16", 16 * 16 * 128 / 130, 5e-6, _PCI),
        _standard("PCIe 5.0 x16", 16 * 32 * 128 / 130, 5e-6, _PCI),
    )
})  # fmt: skip


def get_link(link: str | Link) -> Link:
    """A link of `LINKS` by name; a `Link` is returned as it is.

    Raises:
        ValueError: if the name is unknown; the message lists the known ones.
    """
    if isinstance(link, Link):
        return link
    if link not in LINKS:
        raise ValueError(f"link must be a Link or one of {', '.join(LINKS)}, got {link!r}; for NVLink, nvlink(device)")
    return LINKS[link]


def nvlink(device: str | Device) -> Link:
    """The link of a GPU to the others of its node, half of its data sheet's figure in each direction.

    Args:
        device: as in `hardware.get_device`.

    Raises:
        ValueError: if the device is unknown, or has no link of its own.
    """
    device = get_device(device)
    if not device.link_bytes_per_s:
        raise ValueError(f"{device.name} has no link to other GPUs but PCIe; use get_link('PCIe 4.0 x16')")
    return Link(
        name=f"link of {device.name}",
        latency_s=NVLINK_LATENCY_S,
        bandwidth_bytes_per_s=device.link_bytes_per_s / 2,
        source=device.source,
        confidence=device.confidence,
    )


def wire_bytes(collective: str, payload_bytes: float, num_ranks: int) -> float:
    """Bytes that each rank sends (and receives) in a ring collective.

    Args:
        collective: "all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce" or "all_to_all".
        payload_bytes: S, the bytes of the whole vector.
        num_ranks: N.

    Returns:
        2 S (N-1)/N for an all-reduce, S (N-1)/N for the others (of broadcast and reduce, the average of the ranks).

    Raises:
        ValueError: for another collective, a negative payload, or fewer than one rank.

        >>> wire_bytes("all_reduce", 100, 4), wire_bytes("all_gather", 100, 4)
        (150.0, 75.0)
    """
    _check(collective, payload_bytes, num_ranks)
    return (2 if collective == "all_reduce" else 1) * payload_bytes * (num_ranks - 1) / num_ranks


def collective_time_s(
    collective: str,
    payload_bytes: float,
    num_ranks: int,
    link: str | Link | Cluster,
    algorithm: Algorithm = "ring",
    *,
    add_s_per_byte: float = 0.0,
) -> float:
    """Time of a collective.

    Args:
        collective: as in `wire_bytes`.
        payload_bytes: bytes of the whole vector.
        num_ranks: p.
        link: between all ranks; a `Cluster` goes in two levels: a reduce-scatter inside the node, the rest of the work
            between nodes with each GPU's share of the vector, an all-gather inside.
        algorithm: "ring"; "tree", for a reduce-scatter or all-gather recursive halving or doubling, for the others
            binomial; "recursive_doubling" for an all-reduce only. A ring broadcast has the best number of chunks.
        add_s_per_byte: gamma, time to add up a byte; (p-1)/p n gamma for a ring.

    Returns:
        Time, in s; 0 for one rank.

    Raises:
        ValueError: for a collective or algorithm that there is not, a negative size, or a cluster with part of a node.
    """
    _check(collective, payload_bytes, num_ranks)
    if num_ranks == 1:
        return 0.0
    if isinstance(link, Cluster):
        return _two_levels_s(collective, payload_bytes, num_ranks, link, algorithm, add_s_per_byte)
    link = get_link(link)
    steps, sent_bytes = _steps_and_bytes(collective, payload_bytes, num_ranks, link, algorithm)
    added_bytes = payload_bytes * (num_ranks - 1) / num_ranks
    if algorithm != "ring" and collective in ("all_reduce", "reduce"):
        added_bytes = payload_bytes * math.ceil(math.log2(num_ranks))
    adding_s = added_bytes * add_s_per_byte if collective in ("all_reduce", "reduce_scatter", "reduce") else 0.0
    return steps * link.latency_s + sent_bytes / link.bandwidth_bytes_per_s + adding_s


def _steps_and_bytes(
    collective: str, payload_bytes: float, num_ranks: int, link: Link, algorithm: Algorithm
) -> tuple[float, float]:
    """Messages one after the other, and bytes that they carry."""
    others, rounds = num_ranks - 1, math.ceil(math.log2(num_ranks))
    if algorithm == "ring":
        if collective in ("broadcast", "reduce"):  # chunks follow each other; their best number balances both terms
            latency_bytes = link.latency_s * link.bandwidth_bytes_per_s
            best = math.sqrt((num_ranks - 2) * payload_bytes / latency_bytes) if latency_bytes else math.inf
            chunks = max(best, 1.0)
            behind = (num_ranks - 2) / chunks
            return (num_ranks - 2 + chunks if latency_bytes else 0.0), payload_bytes * (1 + behind)
        halves = 2 if collective == "all_reduce" else 1
        return halves * others, wire_bytes(collective, payload_bytes, num_ranks)
    if algorithm == "tree" and collective != "all_to_all":
        if collective in ("reduce_scatter", "all_gather"):
            return rounds, wire_bytes(collective, payload_bytes, num_ranks)
        passes = 2 if collective == "all_reduce" else 1
        return passes * rounds, passes * rounds * payload_bytes
    if algorithm == "recursive_doubling" and collective == "all_reduce":
        steps = int(math.log2(num_ranks)) + (0 if num_ranks & others == 0 else 2)
        return steps, steps * payload_bytes
    raise ValueError(
        f"algorithm must be 'ring', 'tree' (not for all_to_all) or 'recursive_doubling' (only for all_reduce), got "
        f"{algorithm!r} for {collective}"
    )


def _two_levels_s(
    collective: str, payload_bytes: float, num_ranks: int, cluster: Cluster, algorithm: Algorithm, add: float
) -> float:
    inside = cluster.ranks_per_node
    if num_ranks <= inside:
        return collective_time_s(collective, payload_bytes, num_ranks, cluster.inside, algorithm, add_s_per_byte=add)
    if num_ranks % inside or collective not in ("all_reduce", "reduce_scatter", "all_gather"):
        raise ValueError(
            f"over a Cluster, all_reduce, reduce_scatter and all_gather of whole nodes of {inside} ranks are "
            f"modelled, got {collective} of {num_ranks} ranks"
        )
    parts = ("reduce_scatter", "all_gather") if collective == "all_reduce" else (collective,)
    within = sum(collective_time_s(part, payload_bytes, inside, cluster.inside, add_s_per_byte=add) for part in parts)
    share_bytes, nodes = payload_bytes / inside, num_ranks // inside
    return within + collective_time_s(collective, share_bytes, nodes, cluster.share, algorithm, add_s_per_byte=add)


def bus_bandwidth(collective: str, payload_bytes: float, num_ranks: int, time_s: float) -> float:
    """Bytes per second and direction that a link must have carried; comparable over collectives and rank counts.

    Args:
        collective: as in `wire_bytes`.
        payload_bytes: bytes of the whole vector.
        num_ranks: ranks.
        time_s: how long it took, in s.

    Raises:
        ValueError: if an argument is out of range.

    Source: NVIDIA nccl-tests: algorithm bandwidth times 2 (p-1)/p for all-reduce, (p-1)/p for reduce-scatter,
    all-gather and all-to-all, 1 for broadcast and reduce.
    """
    _check(collective, payload_bytes, num_ranks)
    if not time_s > 0:
        raise ValueError(f"time_s must be positive, got {time_s}")
    if collective in ("broadcast", "reduce"):
        return payload_bytes / time_s
    return wire_bytes(collective, payload_bytes, num_ranks) / time_s


def crossover_bytes(num_ranks: int, link: str | Link) -> float:
    """The vector below which an all-reduce by tree is faster than by ring; 0 where the tree never is.

    alpha bandwidth (p-1 - r) / (r - (p-1)/p), r = ⌈log2 p⌉.

    Raises:
        ValueError: if the link is unknown or there is no rank.
    """
    _check("all_reduce", 0, num_ranks)
    link, rounds, others = get_link(link), math.ceil(math.log2(num_ranks)), num_ranks - 1
    if others <= rounds:
        return 0.0
    return link.latency_s * link.bandwidth_bytes_per_s * (others - rounds) / (rounds - others / num_ranks)


def _check(collective: str, payload_bytes: float, num_ranks: int) -> None:
    if collective not in COLLECTIVES:
        raise ValueError(f"collective must be one of {', '.join(COLLECTIVES)}, got {collective!r}")
    if not (payload_bytes >= 0 and math.isfinite(payload_bytes)):
        raise ValueError(f"payload_bytes must be >= 0, got {payload_bytes}")
    if num_ranks < 1 or num_ranks != int(num_ranks):
        raise ValueError(f"num_ranks must be a whole number from 1, got {num_ranks}")
