"""Hints to the exercises, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "ddp_overlap/1": (
        "A rank's gradient is a mean over its own tokens. How do you turn a mean back into a sum? And what must "
        "the sum over all ranks be divided by?",
        "Multiply each gradient by the rank's number of tokens, all-reduce it (a sum), and divide by the number of all "
        "tokens. That number comes from one more all-reduce.",
        "total = torch.tensor(float(num_tokens)); dist.all_reduce(total); then for each parameter: p.grad *= "
        "num_tokens; dist.all_reduce(p.grad); p.grad /= total. model.parameters() gives a tied weight once.",
    ),
    "ddp_overlap/2": (
        "Which gradient is ready first when backward runs: that of the first layer, or that of the last? Fill the "
        "buckets in that order.",
        "Give every parameter a bucket in __init__, walking through the parameters from the last to the first. A hook "
        "(p.register_post_accumulate_grad_hook(f), called as f(p)) counts down; at zero, copy the bucket's gradients "
        "into one flat tensor and start dist.all_reduce(flat, async_op=True). Keep the flat tensor and the handle.",
        "In finish: for each bucket wait(), divide by the number of ranks, and copy the pieces of the flat tensor "
        "(flat.split([p.numel() for p in bucket])) back into p.grad. Then empty the list and reset the counters: there "
        "is a next step. The last bucket is seldom full by bytes; by count of its own parameters it is.",
    ),
    "ddp_overlap/3": (
        "Two questions. In which micro-batch is the gradient complete? And what does a rank send whose gradient is "
        "None, while the others wait for its message?",
        "no_sync sets a flag that the hook looks at (and resets it in a finally). In finish, a bucket that has not "
        "been sent is sent now, with zeros where there is no gradient. And since all ranks must call the same "
        "collectives in the same order, send bucket i + 1 only after bucket i.",
        "In the hook: count down, then `while next < len(buckets) and missing[next] == 0: send(next); next += 1`. In "
        "finish: for p in model.parameters(): if p.grad is None: p.grad = torch.zeros_like(p); then send the buckets "
        "from `next` on, and go on as in part 2.",
    ),
}
