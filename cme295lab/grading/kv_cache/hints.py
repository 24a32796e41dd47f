"""Hints to the exercise, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "kv_cache/1": (
        "In each layer, a token leaves a key and a value for each key/value head. How many numbers has a key?",
        "Query heads do not count: their vectors are used once and forgotten. That is what makes grouped-query "
        "attention cheap.",
        "2 * num_layers * num_kv_heads * head_dim * seq * batch * bytes_per_number.",
    ),
    "kv_cache/2": (
        "How many positions does the cache hold before this call? That is the position of the first new token.",
        "Rotate q and the new k from that position on, join the new keys and values to the old ones, put both back "
        "into the cache. Query i then sees the first held + i + 1 keys.",
        "held = cache['k'].shape[1] if cache else 0; after joining, torch.arange(k.shape[1]) <= held + "
        "torch.arange(q.shape[1])[:, None] is the mask of what a query sees; scores elsewhere become -inf.",
    ),
    "kv_cache/3": (
        "The cache remembers what the model has read. What does the model need to read for the second new token?",
        "Read the whole prompt in one call. After that, each call reads one token: the one that was chosen last. The "
        "logits that matter are those of the last position.",
        "logits = model(prompt, cache); then num_tokens times: token = int(logits[-1].argmax()); tokens.append(token); "
        "unless it was the last one, logits = model([token], cache).",
    ),
}
