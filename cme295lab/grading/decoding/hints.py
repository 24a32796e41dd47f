"""Hints to the exercise, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "decoding/1": (
        "A token that may not be drawn has the logit -inf: exp(-inf) is 0, and softmax renormalises what is left by "
        "itself.",
        "logits.topk(k, dim=-1).indices says which k to keep, exactly k even where values tie. Start from a tensor "
        "full of -inf and copy the kept logits into it.",
        "z = logits / temperature; kept = z.topk(min(top_k, z.shape[-1]), dim=-1).indices; "
        "out = torch.full_like(z, -math.inf).scatter(-1, kept, z.gather(-1, kept)); out.softmax(-1).",
    ),
    "decoding/2": (
        "Sort the probabilities of a row from large to small and write the cumulative sum next to them. Which is the "
        "last token that you still need to reach p?",
        "A token is kept if the sum of those *before* it is below p. That is the cumulative sum, moved by one place. "
        "The mask is then in sorted order: bring it back before you use it.",
        "ranked, order = logits.softmax(-1).sort(-1, descending=True); before = ranked.cumsum(-1) - ranked; "
        "kept = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, before < top_p).",
    ),
    "decoding/3": (
        "A beam is a pair (tokens, sum of log-probabilities). In a step, put all continuations of all beams into one "
        "list and sort it once.",
        "Walk down the sorted list. If a candidate ends and is among the first num_beams of the list, it is an answer. "
        "If it does not end and fewer than num_beams beams are chosen yet, it goes on.",
        "At the end, beams that are still alive are answers too. Score each by total / ((5 + len(tokens)) / 6) ** "
        "alpha, and return the best: max(answers, key=lambda answer: answer[1]).",
    ),
    "decoding/4": (
        "Go through the proposals from left to right. What ends the step: a rejection, or the end of the proposals?",
        "Accept x if u < p(x) / q(x). After the first rejection draw from max(p - q, 0), divided by its sum, with the "
        "p and q of that place. Proposals behind it are dropped: they continue a token that is not there.",
        "for i, x in enumerate(proposals): if uniforms[i] * q[i, x] >= p[i, x]: rest = (p[i] - q[i]).clamp(min=0); "
        "return proposals[:i] + [draw(rest / rest.sum())]. After the loop: return proposals + [draw(p[-1])].",
    ),
}
