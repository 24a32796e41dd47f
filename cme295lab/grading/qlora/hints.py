"""Hints to the exercise, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "qlora/1": (
        "Autograd saves what the gradient needs. Of x @ W.T it saves W, if x needs a gradient. So this product needs a "
        "backward pass of yours, which makes W again; the adapter does not.",
        "FrozenProduct.forward: keep the 4-bit weight, ctx.weight = weight, and return x @ "
        "weight.dequantize(x.dtype).T. Its backward gets g, of the output's shape, and returns the gradient of x, and "
        "None for the weight.",
        "backward: g @ ctx.weight.dequantize(g.dtype), None. qlora_linear: FrozenProduct.apply(x, weight) + scale * "
        "(x @ A.to(x.dtype).T @ B.to(x.dtype).T).",
    ),
    "qlora/2": (
        "Three kinds of parameters: matrices of the layers, everything else, and adapters. Which of them have "
        "gradients and states?",
        "An adapter of a matrix (out, in) has rank * (in + out) parameters. A weight of the base has 4 bits, 8 bits "
        "shared by a block, and 32 bits shared by a group of blocks.",
        "bits = 4 + 8 / block_size + 32 / (block_size * group_size); bytes = bits / 8 * base + 2 * num_other + 16 * "
        "adapters. In full: 12 * (base + num_other).",
    ),
    "qlora/3": (
        "Keep a list of the pages on the GPU, in the order of their last use. Where is the one to evict?",
        "A page that is there moves to the end of the list. One that is not: as long as the bytes on the GPU and its "
        "own exceed the budget, the first of the list goes out; then it comes in, at the end.",
        "while sum(page_bytes[p] for p in present) + page_bytes[page] > budget_bytes: out(present.pop(0)). Each move, "
        'in or out, moves page_bytes[page]: sum(page_bytes[page] for _, page in moves).',
    ),
}
