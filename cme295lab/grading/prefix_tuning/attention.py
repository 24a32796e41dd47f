"""Attention with a prefix in float64: right by default, and with known mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

INPUTS = ("q", "k", "v", "prefix_k", "prefix_v")


@dataclass(frozen=True, kw_only=True)
class Attention:
    """How tokens attend; the defaults make no mistake.

    Args:
        cause: the mistake, in the words of the exercise.
        mask: "right"; "top left" (causal over prefix and tokens counted from the prefix's first key), "strict" (a
            token does not see itself), "none", or "prefix causal" (a token sees as many keys of the prefix as tokens).
        keys, values: the prefix's: "own", "other" (values for keys, keys for values), "zeros", "first head" or "none".
        softmax: "joint"; or over tokens and prefix separately, "added" or "averaged".
        factor: of scores: "root", "none", "dim" or "all heads".
        queries: "tokens"; or "first", where the prefix has queries as well, and the first rows are returned.
        normalised: along "keys" or "queries".
    """

    cause: str = ""
    mask: str = "right"
    keys: str = "own"
    values: str = "own"
    softmax: str = "joint"
    factor: str = "root"
    queries: str = "tokens"
    normalised: str = "keys"


RIGHT = Attention()
MISTAKES = (
    Attention(cause="the prefix is masked by causality: the causal mask is aligned with its first key, so tokens see "
                    "too little. All of the prefix is visible to every token, in front of the tokens up to itself",
              mask="top left"),
    Attention(cause="the prefix is masked by causality: a token sees only a part of it. All of it is visible to every "
                    "token", mask="prefix causal"),
    Attention(cause="a token does not see itself: the mask is shifted by one", mask="strict"),
    Attention(cause="tokens see later tokens: among tokens, attention is causal", mask="none"),
    Attention(cause="the prefix is not used: its keys and values come before those of the tokens", keys="none",
              values="none"),
    Attention(cause="keys and values share a prefix, that of the keys: each has its own", values="other"),
    Attention(cause="keys and values share a prefix, that of the values: each has its own", keys="other"),
    Attention(cause="the prefixes of keys and values are exchanged", keys="other", values="other"),
    Attention(cause="the values have no prefix: its keys take a share of the weights, and nothing comes from them",
              values="zeros"),
    Attention(cause="the keys have no prefix: its scores are 0", keys="zeros"),
    Attention(cause="every head gets the prefix of the first one: each has its own", keys="first head",
              values="first head"),
    Attention(cause="there is a softmax over tokens and another over the prefix: one softmax runs over all keys",
              softmax="added"),
    Attention(cause="there is a softmax over tokens and another over the prefix, averaged: one softmax runs over all "
                    "keys", softmax="averaged"),
    Attention(cause="the scores are not divided by the root of dim", factor="none"),
    Attention(cause="the scores are divided by dim: by its root", factor="dim"),
    Attention(cause="the scores are divided by the root of all heads' width: by that of one head", factor="all heads"),
    Attention(cause="the first rows are those of the prefix, which needs no queries: return those of the tokens",
              queries="first"),
    Attention(cause="the softmax runs over queries: for each query, the weights of the keys add up to 1",
              normalised="queries"),
)  # fmt: skip


def visible(num_queries: int, num_tokens: int, length: int, mask: str) -> Tensor:
    """Which keys (prefix first) each query sees, bool (queries, length + tokens)."""
    all_of_them = torch.ones(num_queries, length + num_tokens, dtype=torch.bool)
    if mask == "none":
        return all_of_them
    if mask == "prefix causal":
        return torch.cat((all_of_them[:, :length].tril(), all_of_them[:, length:].tril()), dim=1)
    return all_of_them.tril({"right": length, "strict": length - 1, "top left": 0}[mask])


def attend(inputs: Mapping[str, Tensor], how: Attention = RIGHT) -> Tensor:
    """The output for every token, in float64, (batch, heads, tokens, dim).

    Args:
        inputs: q, k, v of (batch, heads, tokens, dim), and prefix_k, prefix_v of (heads, length, dim).
        how: right, or with a mistake.
    """
    q, k, v, prefix_k, prefix_v = (inputs[name].double() for name in INPUTS)
    batch, heads, num_tokens, dim = q.shape
    front_k = _prefix(how.keys, prefix_k, prefix_v).expand(batch, -1, -1, -1)
    front_v = _prefix(how.values, prefix_v, prefix_k).expand(batch, -1, -1, -1)
    length = front_k.shape[2]
    keys, values = torch.cat((front_k, k), dim=2), torch.cat((front_v, v), dim=2)
    mask = visible(num_tokens, num_tokens, length, how.mask)
    if how.queries == "first":
        q, mask = torch.cat((front_k, q), dim=2), visible(length + num_tokens, num_tokens + length, 0, "right")
    factor = {"root": dim**-0.5, "none": 1.0, "dim": 1 / dim, "all heads": (heads * dim) ** -0.5}[how.factor]
    scores = (q @ keys.transpose(2, 3) * factor).masked_fill(~mask, -math.inf)
    if how.softmax != "joint" and length:
        of_prefix = scores[..., :length].softmax(dim=3) @ front_v
        total = of_prefix + scores[..., length:].softmax(dim=3) @ v
        return total / 2 if how.softmax == "averaged" else total
    weights = scores.softmax(dim=3 if how.normalised == "keys" else 2)
    return (weights @ values)[:, :, :num_tokens]


def _prefix(which: str, own: Tensor, other: Tensor) -> Tensor:
    if which == "first head":
        return own[:1].expand_as(own)
    if which == "none":
        return own[:, :0]
    return {"own": own, "other": other, "zeros": torch.zeros_like(own)}[which]
