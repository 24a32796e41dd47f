"""Hints to the exercises, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "ring_all_reduce/1": (
        "Follow one chunk. Chunk 0 must end on rank 0 with everybody's part in it, and it travels along the ring. On "
        "which rank does its journey begin, and how many steps does it take?",
        "Chunk c starts on rank c + 1 and walks to rank c. So in the first step rank r sends chunk r - 1, and receives "
        "chunk r - 2; in each later step both numbers are one less (modulo the number of ranks). What you receive is "
        "added to your own part before it is sent on.",
        "In step s: send = (rank - 1 - s) % num_ranks, and receive = (rank - 2 - s) % num_ranks. Start "
        "dist.isend(chunks[send], right) and dist.irecv(buffer, left), wait for both, then chunks[receive] += buffer.",
    ),
    "ring_all_reduce/2": (
        "Reduce-scatter leaves rank r with the sum of chunk r. The second half is the same walk, and nothing is added: "
        "what arrives replaces the chunk. Where does the division belong, so that it is done once?",
        "Pad the flattened tensor with zeros up to a multiple of the number of ranks, and cut the padding off at the "
        "end. In step s of the second half, rank r sends chunk r - s and receives chunk r - s - 1.",
        "flat = F.pad(tensor.flatten(), (0, -tensor.numel() % num_ranks)), own = ring_reduce_scatter(flat) / N. "
        "Put it into row `rank` of a tensor of num_ranks rows, run num_ranks - 1 steps of isend(rows[send]) and "
        "irecv(rows[receive]), each waited for; then rows.flatten()[: tensor.numel()].view(tensor.shape).",
    ),
    "ring_all_reduce/3": (
        "Count steps, and count what one step sends. The ring has 2 (N - 1) steps of one chunk; the tree has rounds of "
        "the whole tensor.",
        "A message of n bytes takes latency + n / bandwidth. The tree needs log2(N) rounds up and as many down, "
        "rounded up to whole rounds. Set the two times equal and solve for n.",
        "ring: 2 (N - 1) (a + n / (N b)); tree: 2 L (a + n / b) with L = ceil(log2 N). Equal at "
        "n = a b (N - 1 - L) / (L - (N - 1) / N).",
    ),
}
