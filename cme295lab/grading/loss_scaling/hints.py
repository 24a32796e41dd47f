"""Hints to the exercise, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "loss_scaling/1": (
        "One number decides how far all gradients can be moved up. Which?",
        "largest = max over all tensors of g.abs().max(). The scale is 2**k with the largest whole k for which 2**k * "
        "largest < 65504. For num_lost: scale first, convert then, and compare before and after.",
        "2.0 ** math.floor(math.log2(65504 / largest)); and the sum of ((g * scale).half() == 0) & (g != 0) over all "
        "tensors.",
    ),
    "loss_scaling/2": (
        "There are two cases, a step with inf and a clean one, and a clean step has two: the count is reached, or not.",
        "After inf the scale is halved and the count is 0. After a clean step the count is one more; when it reaches "
        "growth_interval, the scale doubles and the count is 0 again.",
        "if found_inf: return scale / 2, 0; if clean_steps + 1 == growth_interval: return scale * 2, 0; return scale, "
        "clean_steps + 1.",
    ),
    "loss_scaling/3": (
        "Which gradients may the norm be taken of, and which may the optimizer see? Those of the loss itself, in fp32.",
        "In this order: forward with weights, backward of loss * scale, gradients to fp32 and divided by the scale, "
        "clear those of the weights, look for inf and NaN, clip, step, copy masters into weights.",
        "master.grad = weight.grad.float() / scale; weight.grad = None. If not all(g.isfinite().all()), return True. "
        " torch.nn.utils.clip_grad_norm_(masters, max_norm); optimizer.step(); with torch.no_grad(): "
        "weight.copy_(master); return False.",
    ),
}
