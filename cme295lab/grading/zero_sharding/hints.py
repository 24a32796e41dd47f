"""Hints to the exercises, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "zero_sharding/1": (
        "Lay all tensors into one row. How long must a shard be, so that N equal ones hold the row? What fills the "
        "last one up?",
        "flat = torch.cat([t.flatten() for t in tensors]); a shard has ceil(elements / num_ranks) of them; pad the row "
        "with zeros up to num_ranks shards. A slice is a view that keeps the whole row alive: clone() it.",
        "-n % num_ranks is the number of zeros: flat = F.pad(flat, (0, -flat.numel() % num_ranks)), and "
        "flat.view(num_ranks, -1)[rank].clone(). Back: flat[: n].split([t.numel() for t in tensors]), each with "
        ".view(t.shape).",
    ),
    "zero_sharding/2": (
        "Which gradients does a rank need that updates one shard only? And who has the new weights of the others?",
        "Hand the optimizer one parameter: the shard. In step: a row of all gradients (zeros where there is none), "
        "reduce-scatter it into a shard, divide by the number of ranks, let the optimizer step, all-gather the shards, "
        "and copy the row back into the model.",
        "dist.reduce_scatter(own, list(row.chunk(N))) and dist.all_gather(list(row.chunk(N)), shard); the row has N "
        "shards, padding included. Copy with p.copy_(value) under torch.no_grad().",
    ),
    "zero_sharding/3": (
        "F.linear(x, weight) makes autograd keep the weight. What can an autograd.Function keep instead, so that its "
        "backward can get the weight once more?",
        "forward: gather the weight, compute, and save x and the shard. backward: gather again; grad @ weight is the "
        "gradient of x; grad.T @ x is that of the weight, whole, of this rank's batch. What turns it into the shard of "
        "the mean?",
        "row = (grad.T @ x).flatten(), padded like the weight; dist.reduce_scatter(own, list(row.chunk(N))); return "
        "grad @ weight, own / num_ranks, None. The weight is a local variable: it is released when the function ends.",
    ),
}
