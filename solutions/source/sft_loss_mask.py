# %% [markdown]
# # Exercise: The loss of a conversation
#
# Fine-tuning on conversations is next-token prediction, as before. What is new is bookkeeping: which tokens count, how
# their losses are averaged, and how short conversations share a row. Each of the three goes wrong silently: the loss
# falls all the same. You build all three.
#
# | part | you write | points |
# |---|---|---|
# | 1 | inputs and labels of a conversation | 4 |
# | 2 | the loss of a batch, and of micro-batches | 5 |
# | 3 | several conversations in one row | 4 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("sft_loss_mask/1")` gives a hint, and `checks.hint("sft_loss_mask/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from cme295lab.grading import checks

# %% [markdown]
# ## Part 1. Whose words count
#
# A conversation is a list of **turns** `(role, content)`, the content as tokens. A template writes each turn as
#
# > header of the role, content, end of turn
#
# and turns follow each other without anything between them.
#
# The model reads everything and learns only what the **assistant** says: its content and its *end of turn*. The header
# is not its own: whoever asks for an answer writes it. Elsewhere the **label** is -100, which PyTorch's `cross_entropy`
# leaves out.
#
# `inputs` are all tokens but the last. `labels[i]` is the token *after* `inputs[i]`, or -100 if that one does not
# count.

# %% [markdown]
# A small example. Headers are `[1, 6]` for the user and `[1, 7]` for the assistant, and 2 ends a turn. The user says
# `[21, 22]`, the assistant `[31, 32]`:
#
# | inputs | 1 | 6 | 21 | 22 | 2 | 1 | 7 | 31 | 32 |
# |---|---|---|---|---|---|---|---|---|---|
# | labels | -100 | -100 | -100 | -100 | -100 | -100 | 31 | 32 | 2 |
#
# **Predict**: what would a model do that was trained without the label 2? And one with labels on the user's words?
#
# Mind two things:
#
# - There may be several answers, and all of them count.
# - A user may write the same tokens as the assistant, and even its header.

# %% nbgrader={"grade":false,"grade_id":"labels","locked":false,"schema_version":3,"solution":true}
def inputs_and_labels(
    turns: list[tuple[str, list[int]]], headers: dict[str, list[int]], end_of_turn: int
) -> tuple[Tensor, Tensor]:
    """What the model reads, and what it must predict.

    Args:
        turns: (role, content), in order; roles are "system", "user" and "assistant".
        headers: tokens of each role's header.
        end_of_turn: the token that ends each turn.

    Returns:
        (inputs, labels): int64, both one shorter than the conversation.

    TASKS
    1. All tokens, and which of them count.
    2. Shift: the label of a place is the next token.
    """
    ### BEGIN SOLUTION
    tokens, counted = [], []
    for role, content in turns:
        speaks = role == "assistant"
        tokens += [*headers[role], *content, end_of_turn]
        counted += [False] * len(headers[role]) + [speaks] * (len(content) + 1)
    tokens, counted = torch.tensor(tokens), torch.tensor(counted)
    return tokens[:-1], torch.where(counted, tokens, -100)[1:]
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"labels_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("sft_loss_mask/1", inputs_and_labels)
### BEGIN HIDDEN TESTS
result &= checks.run("sft_loss_mask/1", inputs_and_labels, seed=295, num_turns=5)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# ## Part 2. Every token weighs the same
#
# The loss of a batch is the **mean over its labelled tokens**: the sum of their losses divided by their number. Places
# with -100 are in neither.
#
# A batch that does not fit into memory is taken in **micro-batches**, whose gradients add up. Their labels are counted
# over *all* of them first, and each sum of losses is divided by that number.
#
# A small example, two micro-batches:
#
# | | labels | loss of each | sum |
# |---|---|---|---|
# | first | 2 | 1.0 | 2 |
# | second | 6 | 3.0 | 18 |
#
# The loss is $(2 + 18) / 8 = 2.5$. The mean of the two means, 2.0, is wrong, and so are its gradients: several trainers
# computed it until October 2024.

# %% [markdown]
# **Predict**: in the mean of means, how much more does a token of the first micro-batch weigh than one of the second?
#
# Mind three things:
#
# - Labels are shifted already.
# - A micro-batch may have no labels at all.
# - Micro-batches are there to save memory: call `backward()` in each, so that its graph is freed before the next one.

# %% nbgrader={"grade":false,"grade_id":"loss","locked":false,"schema_version":3,"solution":true}
def sft_loss(logits: Tensor, labels: Tensor, num_tokens: int | None = None) -> Tensor:
    """The loss of a batch, with a gradient.

    Args:
        logits: float32 (batch, length, vocabulary).
        labels: int64 (batch, length), -100 where nothing counts.
        num_tokens: what the sum is divided by; None for the number of labels in this batch.

    TASK
    1. Sum and number.
    """
    ### BEGIN SOLUTION
    total = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    count = (labels != -100).sum() if num_tokens is None else num_tokens
    return total / count
    ### END SOLUTION

def accumulate_gradients(model: nn.Module, micro_batches: list[tuple[Tensor, Tensor]]) -> float:
    """Leave the gradient of the whole batch's loss in the model, and return that loss.

    Args:
        model: model(inputs) are logits; its gradients are empty.
        micro_batches: (inputs, labels), int64 (batch, length) of different sizes.

    TASK
    2. Count, then forward and backward for each.
    """
    ### BEGIN SOLUTION
    num_tokens = sum(int((labels != -100).sum()) for _, labels in micro_batches)
    total = 0.0
    for inputs, labels in micro_batches:
        loss = sft_loss(model(inputs), labels, num_tokens)
        loss.backward()
        total += loss.item()
    return total
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"loss_check","locked":true,"points":5,"schema_version":3,"solution":false}
result = checks.run("sft_loss_mask/2", (sft_loss, accumulate_gradients))
### BEGIN HIDDEN TESTS
result &= checks.run("sft_loss_mask/2", (sft_loss, accumulate_gradients), seed=295, vocabulary=17, length=9)
### END HIDDEN TESTS
result.award(5)

# %% [markdown]
# Once the check passes: how far the mean of means is off, with rows of ever more uneven lengths.

# %%
if result.passed:
    logits = torch.randn(1, 64, 50, generator=torch.Generator().manual_seed(0))
    logits[0, :32, 0] += 3  # the first half predicts the label 0 well, the second half does not
    for first in (32, 16, 8, 2):
        sizes = (first, 64 - first)
        parts = [(part, torch.zeros(1, size).long()) for part, size in zip(logits.split(sizes, dim=1), sizes)]
        means = sum(sft_loss(part, labels) for part, labels in parts) / 2
        right = sum(sft_loss(part, labels, 64) for part, labels in parts)
        print(f"{first} and {64 - first} tokens: {right:.3f}, mean of means {means:.3f}")

# %% [markdown]
# ## Part 3. Strangers in one row
#
# Conversations are short, rows are long. **Packing** puts several *examples* (inputs and labels, as of part 1) into one
# row, one after the other. What is left at the end is padding. Two things keep the examples apart:
#
# - **mask**: a place sees the past of its own example, itself included, and nothing else. Along the diagonal lie
#   triangles.
# - **positions** begin at 0 in each example: otherwise the second one would seem to start in the middle.
#
# A small example: lengths 2 and 3 in a row of 6.
#
# | place | 0 | 1 | 2 | 3 | 4 | 5 |
# |---|---|---|---|---|---|---|
# | example | a | a | b | b | b | padding |
# | position | 0 | 1 | 0 | 1 | 2 | any |
# | sees | 0 | 0, 1 | 2 | 2, 3 | 2, 3, 4 | something |

# %% [markdown]
# **Predict**: of the 36 pairs of places in this row, how many are seen by the examples? How many would a mask see that
# is only causal?
#
# Mind two things:
#
# - Padding has the label -100, and no example sees it.
# - A row of the mask that sees *nothing* gives 0/0 in the softmax. So places of padding must see something, such as
#   themselves.

# %% nbgrader={"grade":false,"grade_id":"pack","locked":false,"schema_version":3,"solution":true}
def pack(
    examples: list[tuple[Tensor, Tensor]], length: int, padding: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Several examples in one row.

    Args:
        examples: (inputs, labels) of each, int64; together they are no longer than the row.
        length: of the row.
        padding: the token that fills it up.

    Returns:
        (inputs, labels, positions, mask): int64 (length,), and bool (length, length), True where a place is seen.

    TASKS
    1. Inputs and labels, filled up.
    2. Positions.
    3. The mask: row i is what place i sees.
    """
    ### BEGIN SOLUTION
    lengths = [len(inputs) for inputs, _ in examples]
    lengths.append(length - sum(lengths))
    inputs = torch.cat([inputs for inputs, _ in examples] + [torch.full((lengths[-1],), padding)])
    labels = torch.cat([labels for _, labels in examples] + [torch.full((lengths[-1],), -100)])
    positions = torch.cat([torch.arange(count) for count in lengths])
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    mask = (document[:, None] == document[None, :]).tril()
    return inputs, labels, positions, mask
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"pack_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("sft_loss_mask/3", pack)
### BEGIN HIDDEN TESTS
result &= checks.run("sft_loss_mask/3", pack, seed=295, lengths=(3, 6, 1, 4), spare=5)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: the mask of four examples, and what an attention layer makes of the last one, packed and alone.

# %%
if result.passed:
    examples = [(torch.arange(n), torch.arange(n)) for n in (9, 4, 12, 7)]
    *_, mask = pack(examples, 36, 0)
    x = torch.randn(1, 1, 36, 16, generator=torch.Generator().manual_seed(0))
    packed = nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)[:, :, 25:32]
    alone = nn.functional.scaled_dot_product_attention(*(x[:, :, 25:32],) * 3, is_causal=True)
    print(f"largest difference {(packed - alone).abs().max():.1g}")
    figure, axes = plt.subplots(figsize=(3.4, 3.4), layout="constrained")
    axes.imshow(mask, cmap="Blues")
    axes.set(xlabel="place that is seen", ylabel="place that sees", title="9, 4, 12 and 7 tokens")
    plt.show()

# %% [markdown]
# ## Summary
#
# - Labels are -100 but on the assistant's content and its end of turn, in every turn, shifted by one.
# - The loss is a mean over labelled tokens: over the whole batch, however it is cut.
# - In a packed row, mask and positions make each example as if it were alone.
# - **To take away**: a loss that falls proves none of the three. What would you print before a long run to be sure?
