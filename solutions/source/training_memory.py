# %% [markdown]
# # Exercise: Where the 80 GB go
#
# A model of 8 billion parameters is a file of 16 GB. Training it needs ten times that. You find out why, byte by byte,
# and make it fit.
#
# | part | you write | points |
# |---|---|---|
# | 1 | bytes of weights, gradients and optimizer states, whole and sharded | 3 |
# | 2 | bytes that one layer keeps for the backward pass | 3 |
# | 3 | a checkpoint: forget a layer's activations, and compute them again | 5 |
# | 4 | a plan that fits Llama-3 8B into 80 GB | 4 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("training_memory/1")` gives a hint, and `checks.hint("training_memory/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from cme295lab import memory
from cme295lab.grading import checks

# %% [markdown]
# ## Part 1. Sixteen bytes per parameter
#
# An update needs more than the weights:
#
# | | `"fp32"` | `"bf16-mixed"` |
# |---|---|---|
# | weight, gradient | in fp32 | in bf16 |
# | master weight (what the optimizer updates) | the weight itself | an fp32 copy |
#
# The **optimizer** remembers, in fp32: `"sgd"` nothing; `"sgd-momentum"` a mean of gradients; `"adam"` that and a mean
# of their squares. `"adam-8bit"` has both as numbers of one byte, and for every block of 256 numbers their fp32
# maximum.
#
# **Predict**: how many bytes per parameter does mixed precision save with Adam?

# %% [markdown]
# **ZeRO** divides this among $N$ ranks of data parallelism instead of repeating it: stage 1 the masters and the
# optimizer's states, stage 2 the gradients too, stage 3 the weights too. Stage 0 divides nothing.
#
# A small example, by hand: 1 billion parameters, `"fp32"`, `"sgd-momentum"`. Weights, gradients and momentum have 4 GB
# each. On 4 ranks, a rank holds 12 GB in stage 0, 4 + 4 + 1 = 9 GB in stage 1, and 3 GB in stage 3.
#
# Write the formula, in GB ($10^9$ bytes).

# %% nbgrader={"grade":false,"grade_id":"model_states","locked":false,"schema_version":3,"solution":true}
def model_state_gb(num_parameters: int, precision: str, optimizer: str, num_ranks: int, stage: int) -> float:
    """GB of weights, gradients, masters and optimizer states on one rank.

    Args:
        num_parameters: of the whole model; num_ranks divides it.
        precision: "fp32" or "bf16-mixed".
        optimizer: "sgd", "sgd-momentum", "adam" or "adam-8bit".
        num_ranks: ranks of data parallelism.
        stage: of ZeRO, 0 to 3.

    TASKS
    1. Bytes per parameter of each of the four parts.
    2. Which of them does the stage divide?
    """
    ### BEGIN SOLUTION
    weights, gradients, masters = {"fp32": (4, 4, 0), "bf16-mixed": (2, 2, 4)}[precision]
    states = {"sgd": 0, "sgd-momentum": 4, "adam": 8, "adam-8bit": 2 + 2 * 4 / 256}[optimizer]
    total = weights / (num_ranks if stage >= 3 else 1)
    total += gradients / (num_ranks if stage >= 2 else 1)
    total += (masters + states) / (num_ranks if stage >= 1 else 1)
    return num_parameters * total / 1e9
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"states_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("training_memory/1", model_state_gb)
### BEGIN HIDDEN TESTS
result &= checks.run("training_memory/1", model_state_gb, billions=128, num_ranks=16)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# Once the check passes: a model of 7.5 billion parameters on 64 GPUs, as in the paper on ZeRO.

# %% nbgrader={"grade":false,"grade_id":"draw_stages","locked":true,"schema_version":3,"solution":false}
if result.passed:
    sizes = [model_state_gb(7_500_000_000, "bf16-mixed", "adam", 64, stage) for stage in range(4)]
    fig, axes = plt.subplots(figsize=(5, 1.9))
    bars = axes.barh([f"stage {stage}" for stage in range(4)], sizes, color="#0072B2")
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.axvline(80, color="#D55E00", ls="--")
    axes.set(xlabel="GB on each GPU; dashed: 80 GB", xlim=(0, 145))
    axes.invert_yaxis()
    plt.show()

# %% [markdown]
# *The picture, if your formula is right: four bars. The first passes the dashed line at 80 GB; the last one is nearly
# nothing.*
#
# ## Part 2. What a layer keeps
#
# The backward pass needs tensors of the forward pass: the **activations**. Which ones? Those in an operator's
# derivative. `kept_bytes` asks autograd.
#
# **Predict** each line before you run the cell: a product $xW$; dropout; a sum $x + y$. Each tensor here has 10,000
# elements of 4 bytes.

# %% nbgrader={"grade":false,"grade_id":"kept_bytes","locked":true,"schema_version":3,"solution":false}
def kept_bytes(function, *inputs):
    """Bytes of all tensors that autograd keeps of a function."""
    kept = {}
    def note(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        function(*inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

x, w = (torch.randn(100, 100, requires_grad=True) for _ in range(2))
print("product ", kept_bytes(torch.matmul, x, w))
print("softmax ", kept_bytes(lambda x: x.softmax(-1), x))
print("gelu    ", kept_bytes(torch.nn.functional.gelu, x))
print("dropout ", kept_bytes(lambda x: torch.nn.functional.dropout(x, 0.1), x))
print("sum     ", kept_bytes(torch.add, x, w))

# %% [markdown]
# A product keeps both inputs (one of them is often a weight, which exists anyway), softmax its *output*, GELU and a
# norm their *input*, dropout a mask of **1 byte** per element, a sum nothing. (Some kernels keep a wider mask on a
# CPU; count 1 byte.) What two operators need is kept once.
#
# A layer of GPT, in 2-byte numbers; $s$ tokens, $b$ sequences, $h$ = dim, $a$ heads:
#
# - **attention**: a norm; projections to $Q, K, V$; $QK^\top$; softmax; dropout; its product with $V$; a projection;
#   dropout; a sum;
# - **MLP**: a norm; a projection to $4h$; GELU; a projection to $h$; dropout; a sum.
#
# Each norm keeps its input; its few statistics are neglected.

# %% [markdown]
# Three ways to keep less:
#
# - **Flash attention** has no score matrices. It keeps a *log-sum-exp* for each row of each head's scores, in fp32;
#   $Q, K, V$ and its output remain.
# - **Selective** recomputation drops what has $s \times s$ elements and computes it again from $Q$ and $K$. The check
#   asks for it with standard attention only.
# - **Full** recomputation keeps the layer's input and nothing else.
#
# Write the formula. It should be of the form $c_1\,sbh + c_2\,as^2b + c_3\,asb$.

# %% nbgrader={"grade":false,"grade_id":"layer_activations","locked":false,"schema_version":3,"solution":true}
def layer_activation_bytes(
    seq: int, batch: int, dim: int, num_heads: int, attention: str = "standard", recompute: str = "none"
) -> float:
    """Bytes that a layer keeps for the backward pass.

    Args:
        seq, batch, dim, num_heads: s, b, h, a.
        attention: "standard" or "flash".
        recompute: "none", "selective" or "full".

    TASKS
    1. Elements of the layer's input, of all score matrices, of all their rows.
    2. How many bytes of each are kept?
    """
    ### BEGIN SOLUTION
    inputs = seq * batch * dim
    scores = num_heads * seq**2 * batch
    if recompute == "full":
        return 2 * inputs
    attention_bytes, mlp_bytes, norm_bytes = 11 * inputs, 19 * inputs, 4 * inputs
    if attention == "flash":
        attention_bytes += 4 * num_heads * seq * batch
    elif recompute == "none":
        attention_bytes += 5 * scores
    return attention_bytes + mlp_bytes + norm_bytes
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"activations_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("training_memory/2", layer_activation_bytes)
### BEGIN HIDDEN TESTS
result &= checks.run("training_memory/2", layer_activation_bytes, seq=1024, batch=4, heads=64, long=16384)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# ## Part 3. Forget, and compute again
#
# `checkpoint(function, x)` returns `function(x)`. But of everything that the function computes on the way, it keeps
# nothing: only `x`. When backward arrives, it computes the function again, and goes back through that.
#
# The tool is an `autograd.Function`: in its `forward`, gradients are off, so nothing is saved by itself; its
# `backward` gets the gradient of the output and returns those of the inputs. A small example of the shape, which does
# nothing useful:

# %% nbgrader={"grade":false,"grade_id":"example_function","locked":true,"schema_version":3,"solution":false}
class Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, function):
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        print("backward gets", tuple(grad.shape), "and may use x of", tuple(x.shape))
        return torch.zeros_like(x), None  # one for each argument of forward

y = Apply.apply(torch.randn(2, 3, requires_grad=True), torch.exp)
y.sum().backward()

# %% [markdown]
# Write `checkpoint`. What must hold:
#
# - gradients of `x` *and of the parameters inside of the function* are equal **to the bit** to those of a plain call;
# - that is so with dropout as well: the second run must draw the same masks, and whoever draws random numbers later
#   must not notice that there was a second run;
# - the function is called once in the forward pass and once in the backward pass;
# - several checkpoints in a row work.
#
# **Predict**: with a checkpoint around each layer, how much slower is a step, if backward takes twice as long as
# forward?

# %% nbgrader={"grade":false,"grade_id":"checkpoint","locked":false,"schema_version":3,"solution":true}
class Recompute(torch.autograd.Function):
    """Runs a function without keeping its activations.

    TASKS
    1. forward: what must be kept, besides x, to compute the same again?
    2. backward: compute again, this time with gradients, and let autograd go back through it.
    """

    @staticmethod
    def forward(ctx, x, function):
        ### BEGIN SOLUTION
        ctx.function = function
        ctx.random_state = torch.get_rng_state()
        ctx.save_for_backward(x)
        return function(x)
        ### END SOLUTION

    @staticmethod
    def backward(ctx, grad):
        ### BEGIN SOLUTION
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.random_state)
            y = ctx.function(x)
        torch.autograd.backward(y, grad)
        return x.grad, None
        ### END SOLUTION


def checkpoint(function, x: Tensor) -> Tensor:
    """function(x), keeping nothing but x for the backward pass; x needs a gradient."""
    return Recompute.apply(x, function)

# %% nbgrader={"grade":true,"grade_id":"checkpoint_check","locked":true,"points":5,"schema_version":3,"solution":false}
result = checks.run("training_memory/3", checkpoint)
### BEGIN HIDDEN TESTS
result &= checks.run("training_memory/3", checkpoint, seed=295, tokens=96, dim=48, num_layers=4)
### END HIDDEN TESTS
result.award(5)

# %% [markdown]
# ## Part 4. Make it fit
#
# The course's ledger counts a whole training step: model states, all layers' activations, logits, temporaries. Look at
# Llama-3 8B on one H100 (its "80 GB" are GiB: 85.9 GB). **Predict** before you run the cell: what is the largest item?

# %% nbgrader={"grade":false,"grade_id":"llama_ledger","locked":true,"schema_version":3,"solution":false}
ledger = memory.training_memory("llama-3-8b", seq=8192, micro_batch=1)
for name, num_bytes in ledger.by_class().items():
    print(f"{name:16} {num_bytes / 1e9:6.1f} GB")
print(ledger.fits("H100"))

split = memory.ParallelConfig(data=8, zero_stage=2)
print(memory.training_memory("llama-3-8b", seq=8192, parallel=split, recompute="full").fits("H100"))

# %% [markdown]
# Write `choose_plan`. Of all plans (ZeRO stage, recomputation, micro-batch) that fit a rank, return the one that costs
# least, by these rules, the first one first:
#
# 1. Stages 0, 1 and 2 send the same bytes; stage 3 sends half as many again. Use it only if no plan with 0 to 2 fits.
# 2. Less recomputation is better: `"none"`, then `"selective"`, then `"full"`.
# 3. A lower stage is simpler.
# 4. A larger micro-batch keeps the GPU busier.
#
# Everything else stays as the ledger has it by default: bf16-mixed, AdamW, flash attention.

# %% nbgrader={"grade":false,"grade_id":"choose_plan","locked":false,"schema_version":3,"solution":true}
def choose_plan(model: str, num_gpus: int, seq: int, device: str) -> tuple[int, str, int]:
    """The cheapest plan that fits.

    Args:
        model: the name of a preset, for memory.training_memory.
        num_gpus: ranks of data parallelism.
        seq: tokens in a sequence.
        device: such as "H100", for ledger.fits.

    Returns:
        (stage, recompute, micro_batch).

    TASKS
    1. Go through stages and kinds of recomputation in the order of the rules.
    2. Of the first that fits, the largest micro-batch.
    """
    ### BEGIN SOLUTION
    for stages in ((0, 1, 2), (3,)):
        for recompute in ("none", "selective", "full"):
            for stage in stages:
                parallel = memory.ParallelConfig(data=num_gpus, zero_stage=stage)
                ledger = memory.training_memory(model, seq=seq, parallel=parallel, recompute=recompute)
                if ledger.fits(device):
                    return stage, recompute, ledger.largest_fitting("micro_batch", device=device)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"plan_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("training_memory/4", choose_plan)
### BEGIN HIDDEN TESTS
result &= checks.run("training_memory/4", choose_plan, hidden=True)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: how many GPUs does Llama-3 8B need?

# %%
if result.passed:
    for num_gpus in (2, 4, 8, 16, 64):
        print(f"{num_gpus:3} H100s: {choose_plan('llama-3-8b', num_gpus, 8192, 'H100')}")

# %% [markdown]
# ## Summary
#
# - Adam needs 16 bytes per parameter, with and without mixed precision. ZeRO divides them by the ranks, part by part.
# - Activations grow with the batch and the sequence, and without flash attention with the *square* of the sequence.
# - Recomputation trades them for a third more compute. Random numbers belong to what must be restored.
# - Memory is a budget: every item has a price in bytes, in compute or in traffic.
# - **To take away**: which items does a twice as long sequence double, and which does it leave alone?
