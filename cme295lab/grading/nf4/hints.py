"""Hints to the exercise, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "nf4/1": (
        "NormalDist().inv_cdf(p) is the quantile of p. How many probabilities lie on each side, and which one is left "
        "out?",
        "torch.linspace(offset, 0.5, n + 1)[:-1] are n probabilities without 1/2. Above 0 take n = 2^(bits-1), below "
        "it one less, with the sign changed. Then 0, sort, divide by the largest.",
        "half = 2 ** (bits - 1); above = [inv_cdf(float(p)) for p in torch.linspace(offset, 0.5, half + 1)[:-1]]; "
        "below = [-inv_cdf(float(p)) for p in torch.linspace(offset, 0.5, half)[:-1]]; sorted([*above, 0.0, *below]).",
    ),
    "nf4/2": (
        "Cut the flattened x into blocks; its last one may be shorter. Zeros that fill it up change no largest "
        "absolute value.",
        "(normalised[..., None] - code).abs().argmin(-1) are the codes. A block of zeros must not be divided by 0. In "
        "a byte, high * 16 + low.",
        "absmax = blocks.abs().amax(1); divide by absmax.clamp(min=1e-30); codes = ....flatten()[: x.numel()]; if they "
        "are odd, append one; (codes[0::2] * 16 + codes[1::2]).to(torch.uint8).",
    ),
    "nf4/3": (
        "A byte holds two codes: byte >> 4 and byte & 15. Put them back in order, one after the other.",
        "torch.stack((high, low), dim=1).flatten() puts neighbours side by side. Cut off what shape does not need. "
        "Which constant has number i? That of the block i // block_size.",
        "code[codes.long()] * absmax.repeat_interleave(block_size)[: codes.numel()], all in float32; then "
        ".view(shape).to(dtype).",
    ),
    "nf4/4": (
        "Subtract the mean of all constants first: then they lie on both sides of 0, and absmax with 127 steps on each "
        "side fits. Keep the mean.",
        "Store (codes, scales, mean): int8 codes of (absmax - mean), a float32 scale for each group, one number. Mind "
        "the last group, and a group of which every constant is the mean.",
        "Bits: 4 for the code, 8 for the code of a constant, shared by block_size parameters, and 32 for a scale, "
        "shared by block_size * group_size of them.",
    ),
}
