"""Hints to the exercises, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "kernel_clinic/1": (
        "Which two elements of dy are neighbours in memory: dy[i, j] and dy[i + 1, j], or dy[i, j] and dy[i, j + 1]? "
        "The lanes of a block should touch neighbours.",
        "Give each program a block of features, not one. Its lanes run along the features, the loop runs over the "
        "tokens. The grid gets smaller by the same factor.",
        "features = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F); a block of pointers is "
        "dy_ptr + tokens[:, None] * num_features + features[None, :], with a mask for both ends; "
        "acc += tl.sum(dy.to(tl.float32), 0). Grid: (triton.cdiv(num_features, BLOCK_F),).",
    ),
    "kernel_clinic/2": (
        "Between a program's load and its store, another program may load the same row. Either make the three steps "
        "one, or see to it that nobody else touches the row.",
        "tl.atomic_add(pointers, values, mask=...) loads, adds and stores as one step. Without atomics: a program per "
        "row of dw, or per block of columns, which walks over all tokens.",
        "Replace the load, the addition and the store by "
        "tl.atomic_add(dw_ptr + row * dim + columns, dy, mask=columns < dim); the grid stays (num_tokens,).",
    ),
    "kernel_clinic/3": (
        "There are only 25 pairs. What would you do with a stopwatch and enough time?",
        "Call measure for each pair, drop those that hold more than limit_bytes, and keep the one that requests least.",
        "Keep the best so far: if held <= limit_bytes and requested < best_requested, remember the pair. "
        "Do not look at pairs of equal sides only: num_rows and num_cols differ, so may BLOCK_M and BLOCK_N.",
    ),
    "kernel_clinic/4": (
        "The table of tensors says what was requested, and what each byte once would be. The line of the roofline "
        "names what limits the kernel.",
        "times_read is requested over distinct, for x alone. dram_share is DRAM bytes over requested bytes, for both "
        "tensors together.",
        "x is read in three passes, so two of them could be saved: twice the bytes of x.",
    ),
}
