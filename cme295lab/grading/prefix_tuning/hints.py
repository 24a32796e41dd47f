"""Hints to the exercise, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "prefix_tuning/1": (
        "The prefix is part of the keys and of the values, as a KV cache would be: torch.cat along the tokens. The "
        "queries stay as they are. Which entries of the (tokens, length + tokens) scores are masked?",
        "prefix_k.expand(batch, -1, -1, -1) has a batch. Token i sees the keys 0 to length + i: "
        "torch.ones(tokens, length + tokens).tril(length). One softmax over all of them.",
        "scores = q @ torch.cat((front, k), 2).transpose(2, 3) / dim**0.5; scores.masked_fill(~mask, -inf).softmax(-1) "
        "@ torch.cat((front_v, v), 2). Positions: torch.arange(num_tokens), plus prefix_length if shifted.",
    ),
    "prefix_tuning/2": (
        "Write down the shape of every tensor that is trained, and multiply. A bias counts as well.",
        "A prefix: in each layer keys and values of (num_kv_heads, length, head_dim). An adapter: (dim, m), m, (m, "
        "dim), dim, and two of them in each layer.",
        "In training: length * dim for the embeddings, (dim + 1) * hidden for the first matrix and its bias, (hidden + "
        "1) * 2 * num_layers * dim for the second.",
    ),
    "prefix_tuning/3": (
        "mlp(embeddings) has a row for each position. Split the row's numbers with view, and only then bring the axes "
        "into order with permute.",
        ".view(length, num_layers, 2, num_heads, -1).permute(1, 2, 3, 0, 4). What is kept must have no grad_fn. Frozen "
        "means requires_grad_(False) for each parameter of the base.",
        "keep_prefix: make_prefix(...).detach().clone(). trainable: base.requires_grad_(False); return [embeddings, "
        "*mlp.parameters()].",
    ),
}
