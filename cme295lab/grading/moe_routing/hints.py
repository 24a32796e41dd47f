"""Hints to the exercise, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "moe_routing/1": (
        "Gates of a token sum to 1 over the experts that it is sent to. Which softmax gives that?",
        "topk returns values and indices. Either take the softmax of the k largest logits, or divide the k largest "
        "probabilities by their sum: it is the same.",
        "best, experts = logits.topk(k, dim=-1); return best.softmax(dim=-1), experts.",
    ),
    "moe_routing/2": (
        "Go through the experts. For each one, find the places in `chosen` that hold its number: torch.where gives "
        "rows (tokens) and columns (choices).",
        "The queue of an expert: its first choices in the order of the tokens, then its second choices. With "
        "`choices, tokens = torch.where(chosen.T == number)` they come in that order; the first `capacity` have room.",
        "capacity = math.ceil(capacity_factor * x.shape[0] * k / len(experts)); then for each expert: choices, tokens "
        "= torch.where(chosen.T == number); cut both to [:capacity]; y.index_add_(0, tokens, gates[tokens, choices, "
        "None] * expert(x[tokens])).",
    ),
    "moe_routing/3": (
        "Two vectors with a number per expert: which share of all choices went there (counted, no gradient), and what "
        "probability the router gave it on average (with gradient). Multiply, sum, scale.",
        "torch.bincount(chosen.flatten(), minlength=num_experts) counts choices; divide by chosen.numel(). "
        "logits.softmax(-1).mean(0) is P. torch.logsumexp(logits, dim=-1) has a number for each token.",
        "f = torch.bincount(chosen.flatten(), minlength=E) / chosen.numel(); P = logits.softmax(-1).mean(0); "
        "balance * E * (f * P).sum() + z * logits.logsumexp(-1).square().mean().",
    ),
}
