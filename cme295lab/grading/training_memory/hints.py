"""Hints to the exercises, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "training_memory/1": (
        "List what exists for one parameter: the weight, its gradient, perhaps an fp32 master, and what the optimizer "
        "remembers. Which of these does each stage of ZeRO divide by the number of ranks?",
        "fp32: 4 + 4 + 0. Mixed: 2 + 2 + 4. States: SGD 0, momentum 4, Adam 8, 8-bit Adam 2 and two fp32 maxima per "
        "256 parameters. Stage 1 divides masters and states, stage 2 gradients too, stage 3 weights too.",
        "For each of the four parts: size / num_ranks if the stage divides it, else size; add up, multiply by "
        "num_parameters, divide by 10^9. 8-bit Adam: 2 + 2 * 4 / 256.",
    ),
    "training_memory/2": (
        "Walk through the layer, operator by operator, and ask: what does its derivative need? A tensor that two "
        "operators need is kept once.",
        "In units of sbh: attention without the scores has 2 (the input of Q, K and V) + 4 (Q, K) + 2 (V) + 2 (input "
        "of the output projection) + 1 (mask). The MLP has 2 + 8 + 8 + 1, the two norms 2 + 2. Per score: softmax's "
        "output 2, the mask 1, dropout's output 2.",
        "none: 34sbh + 5as²b. selective: 34sbh. full: 2sbh, with any attention. flash: 34sbh + 4asb, the log-sum-exp "
        "of each row in fp32.",
    ),
    "training_memory/3": (
        "An autograd.Function's forward runs without gradients, so nothing inside is kept. Keep x. What must backward "
        "do to get gradients after all?",
        "In backward: x = x.detach().requires_grad_(); under torch.enable_grad(), y = function(x); then "
        "torch.autograd.backward(y, grad) fills the .grad of x and of the parameters. For dropout, the second run "
        "needs the random numbers of the first.",
        "forward(ctx, x, function): ctx.function = function; ctx.random = torch.get_rng_state(); "
        "ctx.save_for_backward(x); return function(x). backward: with torch.random.fork_rng(devices=[]), "
        "torch.enable_grad(): torch.set_rng_state(ctx.random), compute and run backward as above; return x.grad, None.",
    ),
    "training_memory/4": (
        "The ledger answers one question: does this plan fit? Ask it in the order of the rules, and stop at the first "
        "yes.",
        "Outermost loop: (0, 1, 2), then (3,). Then the kinds of recomputation. Innermost: the stages. Ask with a "
        "micro-batch of 1 first; then raise it while it fits.",
        "ledger = memory.training_memory(model, parallel=memory.ParallelConfig(data=num_gpus, zero_stage=stage), "
        "seq=seq, recompute=kind); if ledger.fits(device): return stage, kind, "
        'ledger.largest_fitting("micro_batch", device=device).',
    ),
}
