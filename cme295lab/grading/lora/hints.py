"""Hints to the exercise, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "lora/1": (
        "What must a fresh layer give? And what would the gradients be if A were zero as well as B?",
        "nn.Parameter(torch.randn(rank, in_features) / in_features**0.5) for A, nn.Parameter(torch.zeros(...)) for B. "
        "Freeze what base.parameters() gives. The dropout's output goes to A alone.",
        "for parameter in base.parameters(): parameter.requires_grad_(False). In forward: self.base(x) + alpha / rank "
        "* (self.dropout(x) @ self.A.T @ self.B.T).",
    ),
    "lora/2": (
        "The layer computes W x + scale * B A x. Which matrix does the same in one product?",
        "Change layer.base.weight in place, with torch.no_grad(): then it stays the same frozen parameter. Look at "
        "layer.merged first, and set it.",
        "if not layer.merged: with torch.no_grad(): layer.base.weight += layer.scale * layer.B @ layer.A; layer.merged "
        "= True. The other way: subtract.",
    ),
    "lora/3": (
        "An adapter of a matrix consists of two thin ones. What are their shapes?",
        "A has rank * in_features numbers, B has out_features * rank. The base and its bias count nothing.",
        "num_layers * sum(rank * (out_features + in_features) for out_features, in_features in shapes).",
    ),
    "lora/4": (
        "The base's product is the same for everybody. Which A does an example need? A[adapter] has one for each "
        "example, but mind what the index -1 means.",
        "Indexing with a tensor of numbers gives A of shape (batch, rank, in). einsum or @ then multiplies example by "
        "example. An example without adapter gets the scale 0.",
        "index = adapter.clamp(min=0); scale = torch.where(adapter < 0, 0.0, scales[index]); x @ weight.T + "
        "scale[:, None, None] * (x @ A[index].mT @ B[index].mT).",
    ),
}
