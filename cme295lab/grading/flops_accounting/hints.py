"""Hints to the exercises, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "flops_accounting/1": (
        "N first: list the matrices of one layer with their two sides, then what exists once. How wide are all keys "
        "together, if there are fewer key/value heads than query heads?",
        "A layer: queries and output d·d each, keys and values d·kv each with kv = num_kv_heads · dim / num_heads, the "
        "MLP 3·d·mlp_dim, two norms of d. Once: the embedding V·d, one more norm, and the head V·d unless it is tied.",
        "N = V·d · (1 if tied else 2) + L · (2d² + 2·d·kv + 3·d·f + 2d) + d, and 6 · N · num_tokens.",
    ),
    "flops_accounting/2": (
        "What a token needs, times tokens per second, is a rate in FLOP/s. What the GPUs could do is a rate, too. "
        "Which of them does the arithmetic of recomputation belong to?",
        "A token needs 6N + 12·L·attention_dim·seq. The peak of all GPUs is num_gpus · sheet_tflops · 10^12, half of "
        "it if the sheet's figure is with sparsity. HFU with recompute='full' has four passes where MFU has three.",
        "flops = 6N + 12·L·a·T; if hardware and recompute == 'full': flops *= 4/3. Return flops * tokens_per_s / "
        "(num_gpus * sheet_tflops * 1e12 / (2 if with_sparsity else 1)).",
    ),
    "flops_accounting/3": (
        "The gradient of a sum is the sum of the gradients, and backward adds to .grad by itself. What must each "
        "micro-batch's loss be divided by, so that the sum is the mean over all tokens?",
        "Count the targets of all micro-batches that are not -100, before the loop. In the loop: cross_entropy with "
        "reduction='sum', divided by that count, and backward.",
        "model.zero_grad(); total = sum((t != -100).sum() for _, t in micro_batches); then for each: loss = "
        "F.cross_entropy(model(x).flatten(0, 1), t.flatten(), reduction='sum') / total; loss.backward(); add "
        "loss.item() up.",
    ),
    "flops_accounting/4": (
        "Write the units next to each number: FLOP, FLOP/s, s, days, h, USD, W, MWh. They must cancel.",
        "The rate counts what is executed. With full recomputation that is 8 FLOP per parameter and token, else 6. A "
        "day has 86,400 s and 24 h; a MWh has 10^6 Wh; PUE multiplies what the GPUs take.",
        "days = (8 or 6)·N·D / (num_gpus · tflops · 1e12) / 86400; price = days · 24 · num_gpus · usd; energy = days "
        "· 24 · num_gpus · watts · pue / 1e6.",
    ),
}
