"""Hints to the exercise, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "sft_loss_mask/1": (
        "While you append a turn's tokens you know who speaks. Keep a second list beside the tokens: does this one "
        "count?",
        "An assistant's turn appends False for each token of its header, True for each of its content, and True for "
        "the end of turn; any other turn appends False. Shift in the end, both lists alike.",
        "inputs = tokens[:-1]; labels = [token if counts else -100 for token, counts in zip(tokens[1:], counted[1:])].",
    ),
    "sft_loss_mask/2": (
        "A mean of means weighs each micro-batch the same, however few tokens it has. What must be divided by what?",
        "cross_entropy(..., ignore_index=-100, reduction='sum') divided by the number of labels that are not -100. "
        "For micro-batches: count all labels first, before the first forward pass.",
        "total = sum((labels != -100).sum() for _, labels in micro_batches); for each one: loss = sft_loss(model("
        "inputs), labels, total); loss.backward(); add float(loss) to what you return.",
    ),
    "sft_loss_mask/3": (
        "Give each place of the row the number of its example. When may place i see place j?",
        "document[:, None] == document[None, :] says that two places belong together, and torch.tril keeps the "
        "past. Give the padding a number of its own: then its rows see something, too.",
        "torch.cat([torch.arange(len(inputs)) for inputs, _ in examples]) are the positions; document = torch.arange("
        "len(lengths)).repeat_interleave(torch.tensor(lengths)), where the last length is that of the padding.",
    ),
}
