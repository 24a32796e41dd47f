# %% [markdown]
# # Exercise: What bits can say
#
# A number in a computer is one of a few: a float format is a list of them, and everything else is rounded. You write
# the way from bits to the number and back, for any format, and two ways of living with rounding: at random, so that
# the mean is right, and with a note of what was lost.
#
# | part | you write | points |
# |---|---|---|
# | 1 | from bits to the number | 3 |
# | 2 | from a number to the bits of the nearest one | 6 |
# | 3 | rounding at random | 4 |
# | 4 | sums in 16 bits that lose nothing | 3 |
#
# Each part ends with a check. It says what is right, what is wrong and, where it can tell, why. Run it as often as you
# like. `checks.hint("float_formats/1")` gives a hint, and `checks.hint("float_formats/1", 2)` a bigger one.

# %% nbgrader={"grade":false,"grade_id":"setup","locked":true,"schema_version":3,"solution":false}
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from cme295lab.grading import checks

# %% [markdown]
# ## Part 1. What bits mean
#
# From the left: a **sign** bit, then the **exponent**, then the **mantissa**, each a whole number. The **bias** is
# $2^{\text{exponent bits} - 1} - 1$, and $m$ counts the mantissa's bits.
#
# | exponent field | mantissa | the number |
# |---|---|---|
# | between | any | $\pm\,(1 + \text{mantissa} / 2^m) \cdot 2^{\text{exponent} - \text{bias}}$ |
# | 0 | any | $\pm\,\text{mantissa} / 2^m \cdot 2^{1 - \text{bias}}$ (subnormal; zero too) |
# | all ones | 0 | $\pm\infty$ |
# | all ones | not 0 | NaN |
#
# A format with six bits, by hand: 1 + 3 + 2, bias 3. `0 101 10` is $(1 + 2/4) \cdot 2^{5 - 3} = 6$, and `0 000 11` is
# $3/4 \cdot 2^{-2} = 0.1875$.
#
# **Predict**: which is the largest number of this format, and which the smallest above zero?

# %% nbgrader={"grade":false,"grade_id":"decode","locked":false,"schema_version":3,"solution":true}
def decode(code: int, exponent_bits: int, mantissa_bits: int) -> float:
    """The number that a code means.

    Args:
        code: 1 + exponent_bits + mantissa_bits bits, as a whole number: 0 101 10 is 0b010110, or 22.
        exponent_bits, mantissa_bits: of the format.

    TASKS
    1. Cut the code into its three fields.
    2. Which row of the table is it?
    """
    ### BEGIN SOLUTION
    sign = -1.0 if code >> (exponent_bits + mantissa_bits) else 1.0
    exponent = code >> mantissa_bits & (2**exponent_bits - 1)
    mantissa = code & (2**mantissa_bits - 1)
    bias = 2 ** (exponent_bits - 1) - 1
    fraction = mantissa / 2**mantissa_bits
    if exponent == 2**exponent_bits - 1:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"decode_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("float_formats/1", decode)
### BEGIN HIDDEN TESTS
result &= checks.run("float_formats/1", decode, seed=295, exponent_bits=6, mantissa_bits=5)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# Once the check passes: all numbers of formats with eight bits. Exponent bits buy range, mantissa bits buy steps.

# %% nbgrader={"grade":false,"grade_id":"draw_formats","locked":true,"schema_version":3,"solution":false}
if result.passed:
    fig, axis = plt.subplots(figsize=(8, 1.8))
    for row, exponent_bits in enumerate((5, 4, 3)):
        numbers = [decode(code, exponent_bits, 7 - exponent_bits) for code in range(1, 128)]
        numbers = [number for number in numbers if math.isfinite(number)]
        axis.plot(numbers, [row] * len(numbers), "|", color="#0072B2")
        print(f"1+{exponent_bits}+{7 - exponent_bits}: from {min(numbers):g} to {max(numbers):g}")
    axis.set(xscale="log", xlabel="number", yticks=range(3), yticklabels=["1+5+2", "1+4+3", "1+3+4"])
    plt.show()

# %% [markdown]
# *The picture, if your function is right: three rows of ticks on a logarithmic axis. The row 1+5+2 reaches furthest
# and has four ticks for each doubling; 1+3+4 is shortest and has sixteen.*
#
# ## Part 2. The nearest code
#
# Now back: of the numbers that the format has, the **nearest** to $x$. If two are equally near, the one with the
# **even** code is taken, whose last bit is 0. Ties then go up as often as down.
#
# | $x$ | in 1 + 3 + 2 bits | why |
# |---|---|---|
# | 6.9 | `0 101 11` = 7 | the nearest |
# | 6.5 | `0 101 10` = 6 | a tie of 6 and 7, whose codes end in 10 and 11 |
# | 7.5 | `0 110 00` = 8 | a tie of 7 and 8: the carry goes into the exponent |
# | 0.05 | `0 000 01` = 0.0625 | subnormal |
# | 14.9 | `0 110 11` = 14 | the largest number |
# | 15 | `0 111 00` = $\infty$ | halfway to 16, which would be next |

# %% [markdown]
# Python's numbers have 64 bits: treat them as exact, and round **once**.
#
# - A sign stays, also that of $-0$ and $-\infty$. Any code of NaN will do for NaN.
# - You may use `math.frexp`, `math.ldexp` and the like, or search among the numbers that `decode` gives.
#
# **Predict**: fp16 is 1 + 5 + 10. What becomes of 2049, and what of 65519?

# %% nbgrader={"grade":false,"grade_id":"encode","locked":false,"schema_version":3,"solution":true}
def encode(x: float, exponent_bits: int, mantissa_bits: int) -> int:
    """The code of the nearest number, ties to even.

    Args:
        x: any float.
        exponent_bits, mantissa_bits: of the format.

    TASKS
    1. Zero, infinity and NaN.
    2. Which power of two, and how many units of its last place?
    3. Round, and put the fields together. When is it infinity?
    """
    ### BEGIN SOLUTION
    bias = 2 ** (exponent_bits - 1) - 1
    sign = (math.copysign(1, x) < 0) << (exponent_bits + mantissa_bits)
    infinity = (2**exponent_bits - 1) << mantissa_bits
    if math.isnan(x):
        return infinity + 1
    if math.isinf(x):
        return sign | infinity
    if x == 0:
        return sign
    power = max(math.frexp(x)[1] - 1, 1 - bias)
    units = round(math.ldexp(abs(x), mantissa_bits - power))
    # Codes count upward through the formats' numbers: a leading one adds 1 to the exponent field, and so does a carry.
    code = units + ((power + bias - 1) << mantissa_bits)
    return sign | min(code, infinity)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"encode_check","locked":true,"points":6,"schema_version":3,"solution":false}
result = checks.run("float_formats/2", encode)
### BEGIN HIDDEN TESTS
result &= checks.run("float_formats/2", encode, seed=295, exponent_bits=6, mantissa_bits=5)
### END HIDDEN TESTS
result.award(6)

# %% [markdown]
# Once the check passes: one number, as several formats see it.

# %%
if result.passed:
    for name, e, m in (("fp16", 5, 10), ("bf16", 8, 7), ("1+5+2", 5, 2)):
        for x in (0.1, 2049, 65519, 1e-7):
            print(f"{x:>6g} in {name:5}: {decode(encode(x, e, m), e, m):.10g}")

# %% [markdown]
# ## Part 3. Right on average
#
# A weight of 1 in bf16, and an update of 0.001. The next number is $1 + 2^{-7} \approx 1.0078$, so the nearest one is
# 1, and it is 1 again after a thousand updates.
#
# **Stochastic rounding** goes to one of the two neighbours at random, the nearer more often: a number at 0.3 of the way
# from one to the other goes there with probability 0.3. On average nothing is lost.
#
# An example: 1.001 lies at $0.001 / 2^{-7} = 0.128$ of the way. It becomes 1.0078 in 12.8 % of the draws, and 1 in the
# others.

# %% [markdown]
# bf16 is the upper half of fp32, whose bits `x.view(torch.int32)` shows as a whole number: the same sign and
# exponent, and the first 7 of 23 mantissa bits. Any other way is as right.
#
# Draw from the `generator` alone, a number for each element: `torch.rand` and `torch.randint` take
# `generator=generator`. Then a seed repeats the run.
#
# **Predict**: what happens to a number that bf16 has?

# %% nbgrader={"grade":false,"grade_id":"stochastic_round","locked":false,"schema_version":3,"solution":true}
def stochastic_round(x: Tensor, generator: torch.Generator) -> Tensor:
    """x in bf16, rounded at random so that the mean is x.

    Args:
        x: fp32, any shape, finite.
        generator: source of all that is random.

    Returns:
        bfloat16, the shape of x.

    TASKS
    1. Where does each element lie between its two neighbours?
    2. Draw, and choose.
    """
    ### BEGIN SOLUTION
    bits = x.view(torch.int32)
    noise = torch.randint(0, 2**16, x.shape, generator=generator, dtype=torch.int32)
    cut = (bits + noise) & ~0xFFFF
    return cut.view(torch.float32).bfloat16()
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"stochastic_check","locked":true,"points":4,"schema_version":3,"solution":false}
result = checks.run("float_formats/3", stochastic_round)
### BEGIN HIDDEN TESTS
result &= checks.run("float_formats/3", stochastic_round, seed=295, draws=8000)
### END HIDDEN TESTS
result.award(4)

# %% [markdown]
# Once the check passes: a thousand updates of 0.001.

# %%
if result.passed:
    generator = torch.Generator().manual_seed(0)
    nearest = random = torch.ones(100, dtype=torch.bfloat16)
    for _ in range(1000):
        nearest = (nearest.float() + 0.001).bfloat16()
        random = stochastic_round(random.float() + 0.001, generator)
    print(f"should be 2; nearest: {nearest.float().mean():.3f}, at random: {random.float().mean():.3f}")

# %% [markdown]
# ## Part 4. Nothing lost
#
# From 2048 on, the numbers of fp16 are 2 apart. So 2048 + 1 is 2048, as often as you like:

# %% nbgrader={"grade":false,"grade_id":"stuck","locked":true,"schema_version":3,"solution":false}
total = torch.tensor(0, dtype=torch.float16)
for _ in range(3000):
    total = total + 1
print(f"1, added 3000 times in fp16: {total:.0f}")

# %% [markdown]
# **Compensated summation** (Kahan) carries a second number along, `lost`: the part of what was to be added that the
# total did not take. In the next step it is added again. From 2048, adding 1 each time:
#
# | step | value + lost | new total | lost |
# |---|---|---|---|
# | 1 | 1 + 0 = 1 | 2048 | 1 |
# | 2 | 1 + 1 = 2 | 2050 | 0 |
# | 3 | 1 + 0 = 1 | 2050 | ? |
#
# **Predict**: what stands in the last cell? (2051 is a tie of 2050 and 2052, and 2052 has the even code.)
#
# Write one step. Both numbers stay in the format of `total`, fp16 or bf16; operations on them are rounded to it. `lost`
# is yours: it is zero at first, and the check looks at the total alone.

# %% nbgrader={"grade":false,"grade_id":"compensated_add","locked":false,"schema_version":3,"solution":true}
def compensated_add(total: Tensor, lost: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """total + value, and what that loses.

    Args:
        total: the sum so far, fp16 or bf16, any shape.
        lost: what earlier steps have lost, like total.
        value: what is added, like total.

    Returns:
        (total, lost), like those that came in.

    TASKS
    1. What is to be added in all?
    2. What did the new total take of it, and what not?
    """
    ### BEGIN SOLUTION
    wanted = value + lost
    new = total + wanted
    return new, wanted - (new - total)
    ### END SOLUTION

# %% nbgrader={"grade":true,"grade_id":"sum_check","locked":true,"points":3,"schema_version":3,"solution":false}
result = checks.run("float_formats/4", compensated_add)
### BEGIN HIDDEN TESTS
result &= checks.run("float_formats/4", compensated_add, seed=295, steps=700)
### END HIDDEN TESTS
result.award(3)

# %% [markdown]
# Once the check passes: the mean of ten thousand numbers around 1, in bf16.

# %%
if result.passed:
    values = (1 + torch.randn(10_000, generator=torch.Generator().manual_seed(0))).bfloat16()
    total, kahan, lost = torch.zeros(3, dtype=torch.bfloat16)
    for value in values:
        total = total + value
        kahan, lost = compensated_add(kahan, lost, value)
    print(f"mean {values.double().mean():.4f}, added up in bf16: {total / 10_000:.4f}, with care: {kahan / 10_000:.4f}")

# %% [markdown]
# ## Summary
#
# - A code is sign, exponent and mantissa. With the exponent 0 the implicit one goes, so that the steps down to zero are
#   even.
# - Rounding happens once, to the nearest, and ties go to the even code. Infinity begins halfway behind the largest
#   number.
# - Nearest is best for one number and bad for a thousand small updates: at random, their mean survives.
# - A sum in 16 bits stops where a term is less than half a step. A second number that holds what was lost keeps it
#   going, at twice the memory.
# - **To take away**: fp32 masters cost 4 bytes beside 2. What do stochastic rounding and compensation cost, and what do
#   they risk?
