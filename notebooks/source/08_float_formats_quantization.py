# %% [markdown]
# # What a number costs
#
# A model of 70 billion parameters takes 280 GB in 32 bits, 140 GB in 16, 36 GB in four. Memory, the time to read it and
# the chip area of a multiplier all grow with the bits. So how few are enough, and what do we lose?
#
# You will take numbers apart bit by bit, watch sums stop growing, quantise by hand, see outliers ruin a tensor, and
# measure what all of that does to a real language model.

# %% tags=["parameters"]
profile = "full"  # "fast": smaller sizes, for a quick look

# %%
import math

import torch

from cme295lab.precision.formats import FORMATS, all_values, neighbours, round_to
from cme295lab.widgets import BitExplorer, NumberLine, QuantizerExplorer, number_line_figure, spacing_figure

# %% [markdown]
# ## 1. Sign, exponent, mantissa
#
# A floating-point number is a sign, a power of two, and a factor between 1 and 2:
#
# $$(-1)^s \cdot 2^{\,e - \text{bias}} \cdot 1.m$$
#
# The $E$ exponent bits decide the *range*, the $M$ mantissa bits the *precision*. If all exponent bits are 0, the
# factor is $0.m$ instead (**subnormal** numbers, which fill the gap around zero); if all are 1, the code is an infinity
# or NaN, in most formats.
#
# **Predict**, then click: which bits of 0.1 in fp16 must you flip to get 0.2? Which single bit turns 1 into infinity?
# What does bf16 keep of $1 + 2^{-11}$?

# %%
display(BitExplorer(0.1, format="fp16"))

# %%
display(BitExplorer(0.1, format="fp16").figure())

# %% [markdown]
# The picture stands here for readers without a kernel. No format holds 0.1: in binary it never ends, as 1/3 in decimal.
# bf16 is the first half of fp32, but for the rounding: same range, 65,536 times coarser.
#
# ## 2. The formats
#
# All of them are one description with different numbers in it. The table is computed from those, not typed in.
# $\epsilon$ is the distance from 1 to the next larger value.

# %% tags=["nbval-check-output"]
print("format       bits  E/M   bias  max          smallest normal  smallest    epsilon")
for name, layout in FORMATS.items():
    widths = f"{layout.exponent_bits}/{layout.mantissa_bits}"
    smallest = f"{layout.min_positive:.3g}"
    epsilon = f"2^{math.log2(layout.epsilon):.0f}" if layout.mantissa_bits else "-"
    print(f"{name:12} {layout.num_bits:4}  {widths:5} {layout.bias:4}  {layout.max:<11.5g}  {layout.min_normal:<15.4g}"
          f"  {smallest:10}  {epsilon}")

# %% [markdown]
# - "Full precision (bf16)" is heard often. bf16 has 8 significant bits, not even three decimal digits. Full means fp32.
# - tf32 is no storage format: tensor cores read fp32 and ignore 13 bits. Nothing gets smaller.
# - "fp16 is twice as fast as fp32": as *tf32*, on tensor cores (989 against 495 TFLOP/s, H100). Against plain fp32
#   arithmetic (67) it is 15 times.
# - e4m3 keeps one pattern for NaN and none for infinity; fp6 and fp4 neither. `e8m0` is a power of two, for *scales*.

# %% [markdown]
# ## 3. The number line
#
# Between two powers of two, a format has $2^M$ values at equal distances; past the next power, the distance doubles.
# **Predict**: how many values has fp4 in all? How far apart are the two largest of fp8 e5m2?

# %%
display(NumberLine())

# %%
display(number_line_figure(low=-8, high=8, number=1.7))
display(spacing_figure())

# %% [markdown]
# Each line is a staircase; its height is precision, its length is range. fp16 and bf16 are both 16 bits long: fp16's
# steps are eight times finer, where it has any. It ends at 65,504 above and $6 \times 10^{-8}$ below; bf16 goes on as
# far as fp32 does.
#
# How are the 65,536 codes spent?

# %% tags=["nbval-check-output"]
for name in ("fp16", "bf16"):
    values = all_values(FORMATS[name])
    finite = values[values.isfinite()]
    print(f"{name}: {len(finite):,} finite codes, {len(values) - len(finite):,} others")
    for low, high in ((2.0**-14, 1.0), (1.0, 2.0), (1.0, 65504.0)):
        inside = int(((finite >= low) & (finite < high)).sum())
        print(f"      {inside:6,} from {low:.3g} up to {high:,.0f}")

# %% [markdown]
# Half of all codes are below 1 in magnitude, in both. For weights of about 0.02, most of bf16's exponents never occur.
#
# ## 4. Sums that stop growing
#
# **Predict**: in fp16, what is 2048 + 1? And what do you get by adding 1 ten thousand times?

# %% tags=["nbval-check-output"]
one = torch.ones((), dtype=torch.float16)
for large in (2047.0, 2048.0, 2050.0):
    total = torch.tensor(large, dtype=torch.float16) + one
    print(f"{large:.0f} + 1 = {total.item():.0f}")
below, above = neighbours(torch.tensor([2049.0]), "fp16")
print(f"neighbours of 2049: {below.item():.0f} and {above.item():.0f}; a tie goes to the even mantissa")

# %% [markdown]
# From 2048 on, fp16's values are 2 apart. Adding 1 leads exactly half-way to the next one, the tie goes to the even
# neighbour, and the sum stands still. Not a small error per step: an end. In general, an addend below half the distance
# is lost as a whole. The same happens to a weight whose update is 2,048 times smaller than itself (lab 09).

# %%
def running_sum(values, name, rounding="nearest", generator=None):
    total = torch.zeros((), dtype=torch.float64)
    for value in values:
        total = round_to(total + value, name, rounding=rounding, generator=generator)
    return total.item()


count = {"fast": 1_000, "full": 5_000}[profile]
addends = round_to(torch.rand(count, generator=torch.Generator().manual_seed(0)).double() * 2, "bf16")
print(f"the truth: {addends.sum().item():.2f}")
for name in ("fp32", "fp16", "bf16"):
    print(f"added up in {name}: {running_sum(addends, name):.2f}")

# %% [markdown]
# This is why tensor cores multiply in 16 bits and **accumulate in fp32**, and why norms, softmax and losses stay there.
#
# Another way out is to round *up or down at random*, with the probability that makes the average right. A lost addend
# then is kept sometimes, and enough of the times. The price is noise.

# %%
chance = torch.Generator().manual_seed(0)
sums = [running_sum(addends[:1000], "bf16", "stochastic", chance) for _ in range({"fast": 3, "full": 10}[profile])]
print(f"the truth for the first 1,000: {addends[:1000].sum().item():.1f}")
print(f"rounded to nearest: {running_sum(addends[:1000], 'bf16'):.1f}")
print(f"stochastic: {sum(sums) / len(sums):.1f} on average, {min(sums):.0f} to {max(sums):.0f}")

# %% [markdown]
# ## 5. What a cast does beyond the end
#
# A standard says which codes exist. What becomes of 500 in e4m3, whose largest value is 448, is up to the library:
# infinity does not exist there. NaN says that something went wrong, 448 hides it and trains on.

# %%
for number in (448.0, 464.0, 465.0, 500.0, math.inf):
    strict = round_to(torch.tensor([number]), "fp8_e4m3fn").item()
    saturated = round_to(torch.tensor([number]), "fp8_e4m3fn", saturate=True).item()
    torchs = torch.tensor([number]).to(torch.float8_e4m3fn).float().item()
    print(f"{number:3.0f}: strict {strict:3.0f}, saturating {saturated:3.0f}, this PyTorch {torchs:3.0f}")

# %% [markdown]
# Versions of PyTorch have differed here, and `ml_dtypes` (JAX) gives NaN from 465 on. Never rely on a cast beyond the
# end: scale first, and clamp yourself. fp16 is the same story with infinity: 65,519 becomes 65,504, and 65,520 is lost.
#
# ## 6. Whole numbers, by hand
#
# A quantiser keeps small integers $q$ and a scale, $\hat x = (q - z) \cdot \text{scale}$. **Absmax** lets the largest
# magnitude be the largest code:
#
# $$\text{scale} = \frac{\max|x|}{2^{b-1} - 1}, \qquad q = \text{round}\left(\frac{x}{\text{scale}}\right)$$
#
# **Predict**: which of these five numbers comes back exactly? (Two do.)

# %% tags=["nbval-check-output"]
x = torch.tensor([1.2, -0.5, 3.1, -2.4, 0.0])
scale = x.abs().max() / 127
q = (x / scale).round()
print(f"1 / scale = {1 / scale.item():.7f}")
print("q  =", q.int().tolist())
print("x^ =", [round(value, 6) for value in (q * scale).tolist()])

# %% [markdown]
# Numbers that lie to one side waste absmax's other half. **Zero-point** (affine) quantisation stretches the codes from
# the smallest value to the largest, and remembers the code of zero:
#
# $$\text{scale} = \frac{\max - \min}{2^b - 1}, \; z = -\text{round}\left(\frac{\min}{\text{scale}}\right) - 2^{b-1}$$

# %% tags=["nbval-check-output"]
from cme295lab.quantization import absmax_quantize, quantization_error, zero_point_quantize

y = torch.tensor([0.1, 1.5, 2.0, 3.9, -0.4])
scale = (y.max() - y.min()) / 255
zero = -(y.min() / scale).round() - 128
q = ((y / scale).round() + zero).clamp(-128, 127)
print(f"scale = {scale.item():.7f}, z = {zero.item():.0f}, q = {q.int().tolist()}")
print("y^ =", [round(value, 6) for value in ((q - zero) * scale).tolist()])
assert torch.equal(absmax_quantize(x).codes, (x / (x.abs().max() / 127)).round().to(torch.int8))
assert torch.equal(zero_point_quantize(y).codes, q.to(torch.int8))

# %% [markdown]
# The clamp is needed: with other numbers, both roundings push the largest value to 128, which in 8 bits wraps around to
# −128: the largest number becomes the smallest. **Predict**: which of the two is better for `y`, and for `x`?

# %% tags=["nbval-check-output"]
for name, values in (("x, both signs ", x), ("y, mostly one", y)):
    for bits in (8, 4):
        by_absmax = quantization_error(values, absmax_quantize(values, bits=bits).dequantize())
        by_zero_point = quantization_error(values, zero_point_quantize(values, bits=bits).dequantize())
        print(f"{name} {bits} bits: rmse {by_absmax.rmse:.5f} absmax, {by_zero_point.rmse:.5f} zero-point")

# %% [markdown]
# ## 7. Weights, blocks and one bad neighbour
#
# Zero-point wins where numbers lie to one side; for `x`, five numbers decide by luck. In a real tensor, *which* weights
# share a scale matters more. Below: weights, the levels they are rounded to, and all schemes on the same weights.
#
# **Predict**, then try with `absmax`, 4 bits, one scale for the tensor:
#
# - How many decibels does one more bit bring? (One bit halves the step.)
# - Plant outliers of 20 σ, one weight in 4,096. What share of all other weights becomes exactly 0?
# - Now blocks of 64. Whom do the outliers hurt still? What do blocks of 32 cost, and what do they bring?

# %%
from cme295lab.transformer import load_pretrained

loaded = load_pretrained("course-4m")
course = loaded.model
tensors = {"normal": torch.randn(256, 256, generator=torch.Generator().manual_seed(0)) * 0.02}
tensors["course-4m, layer 3 down"] = course.layers[3].mlp.down.weight.detach()
display(QuantizerExplorer(tensors, granularity="tensor", outlier=20))

# %%
display(QuantizerExplorer(tensors, granularity="block", outlier=20).figure())

# %% tags=["nbval-check-output"]
from cme295lab.widgets import quantizer_scenario

print("4-bit absmax        bits per weight  signal to noise  became 0")
for outlier in (0, 20):
    for granularity, block_size in (("tensor", 64), ("channel", 64), ("block", 64), ("block", 32)):
        found = quantizer_scenario(tensors["normal"], granularity=granularity, block_size=block_size, outlier=outlier)
        name = f"{granularity} {found.block_size or ''}".strip()
        print(f"{name:10} {f'{outlier} σ':7} {found.bits_per_weight:16.3f} {found.error.signal_to_noise_db:12.1f} dB"
              f" {found.share_lost:9.1%}")

# %% [markdown]
# With one scale, one weight in 4,096 sends six of seven others to zero. In blocks, only its 63 neighbours suffer. The
# constants are not free: 32 bits for 64 weights are half a bit for each. Even without outliers, blocks bring 5 dB: most
# of what another bit brings, for half its price.

# %% [markdown]
# ## 8. Outliers that one finds in nature
#
# Activations are worse than weights. In transformers from about 6.7 billion parameters on, a few *features* (columns of
# a layer's input) are up to 20 times larger than all others, in every layer and three quarters of the positions
# (Dettmers et al. 2022). Some six columns of thousands; set them to zero, and perplexity rises by 600 to 1,000 %.
#
# **Predict**: does our model, of 4 million parameters, have such columns? We look on while it reads a text that it was
# not trained on.

# %%
from cme295lab.pretraining.corpora import course_corpus
from cme295lab.quantization import observe

text = "\n\n".join(document.text for document in course_corpus("fast").validation["english"])
tokens = torch.tensor(loaded.tokenizer.encode(text))[: {"fast": 1024, "full": 4096}[profile]]
for layer in observe(course, tokens.view(-1, 256).split(4)):
    if "value" in layer.name or "down" in layer.name:
        found = layer.outlier_columns if layer.num_outlier_columns < 6 else f"{layer.num_outlier_columns} of them"
        print(f"{layer.name:25} weight up to {layer.weight.absmax / layer.weight.std:4.1f} σ, input up to"
              f"{layer.inputs.absmax / layer.inputs.std:5.1f} σ = {layer.inputs.absmax:5.1f}; columns above 6: {found}")

# %% [markdown]
# It has: the same two features, layer after layer, in what attention reads. Small ones: the effect grows with a model.
# The inputs of `down` are products of two activations, and hundreds of columns exceed 6 there: the threshold was chosen
# for large models' normalised activations.
#
# **LLM.int8** takes the columns with some $|x| \ge 6$ out, multiplies them in 16 bits, and the other 99.9 % of the
# values in int8, with one scale per row of $X$ and one per output of $W$. Two planted columns; the error is compared to
# what all *other* columns say:

# %%
from cme295lab.quantization import mixed_int8_linear, outlier_columns

gate = course.layers[0].mlp.gate.weight.detach()
x = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
for size in (1, 20, 60):
    factors = torch.ones(256).index_fill(0, torch.tensor([3, 77]), float(size))
    others, planted = (x * (factors == 1)) @ gate.T, x * factors
    noise = [mixed_int8_linear(planted, gate, threshold=limit) - planted @ gate.T for limit in (math.inf, 6.0)]
    plain, mixed = (quantization_error(others, others + part).signal_to_noise_db for part in noise)
    print(f"× {size:2}: {len(outlier_columns(planted))} outlier columns; int8 {plain:.1f} dB, mixed {mixed:.1f} dB")

# %% [markdown]
# ## 9. Four bits
#
# Sixteen levels: where to put them? Weights are nearly normal, dense around zero, so levels should be dense there, too.
# **NF4** takes quantiles of the normal distribution, scaled so that the outermost are ±1, with an exact zero: seven
# negative levels, eight positive. Each block of 64 is divided by its largest magnitude, rounded to the nearest level.

# %% tags=["nbval-check-output"]
from statistics import NormalDist

from cme295lab.quantization import nf4

offset = 1 - (1 / 30 + 1 / 32) / 2
positive = [NormalDist().inv_cdf(offset + (0.5 - offset) * step / 8) for step in range(8)]
negative = [-NormalDist().inv_cdf(offset + (0.5 - offset) * step / 7) for step in range(7)]
levels = sorted([0.0, *positive, *negative])
print(" ".join(f"{level / max(levels):.4f}" for level in levels))
assert max(abs(level / max(levels) - ours) for level, ours in zip(levels, nf4.code().tolist(), strict=True)) < 1e-6

# %% [markdown]
# Often read: "each level gets the same number of weights". Only roughly, because each block is scaled by its own
# maximum. **Predict**: how often is the most frequent level used, how often the rarest? Equal would be 6.25 %.

# %%
normal = torch.randn({"fast": 2**18, "full": 2**22}[profile], generator=torch.Generator().manual_seed(0))
four = nf4.quantize(normal)
codes = torch.stack((four.packed >> 4, four.packed & 15)).flatten()
shares = torch.bincount(codes.long(), minlength=16).double() / codes.numel()
print(f"from {shares.min():.1%} to {shares.max():.1%}; entropy {-(shares * shares.log2()).sum():.2f} of 4 bits")
double = nf4.quantize(normal, double_quant=True)
for name, tensor in (("fp32 scales", four), ("8-bit scales", double)):
    mse = quantization_error(normal, tensor.dequantize()).mse
    print(f"{name:12} {tensor.bits_per_parameter:.3f} bits per weight, MSE {mse:.5f}")

# %% [markdown]
# **Double quantisation** stores the scales themselves in 8 bits, in groups of 256: $8/64 + 32/(64 \cdot 256) = 0.127$
# bits per weight for constants in place of 0.5: 3 GB for 65 billion parameters. Lab 13 goes deeper.
#
# Hardware wants scales that cost nothing to multiply. **MX** formats share a power of two (`e8m0`) among 32 values,
# **NVFP4** an fp8 number among 16, and fp32 for the tensor. Both keep fp4 elements: 0, 0.5, 1, 1.5, 2, 3, 4, 6.

# %%
from cme295lab.widgets.quantizer_scenario import compare_schemes

for point in sorted(compare_schemes(normal[: 2**16].view(256, 256)), key=lambda point: point.signal_to_noise_db):
    if 4 <= point.bits_per_weight <= 5:
        print(f"{point.family:20} {point.bits_per_weight:.3f} bits {point.signal_to_noise_db:6.1f} dB")

# %% [markdown]
# NF4 is good, not unbeatable: 4-bit zero-point, with two constants per block, is slightly better on normal numbers.
# `fp4` is that of the library bitsandbytes, not the standard's: its smallest level is much smaller.
#
# ## 10. What a language model notices
#
# Decibels are not quality. Now each linear layer's weights are replaced by their quantised selves, and the model reads
# text that it was not trained on. Perplexity is $e^{\text{loss}}$: among how many words it hesitates.
#
# **Predict**: from how many bits on is the loss invisible? Where does it collapse?

# %%
from cme295lab.precision.block_formats import quantize_mx, quantize_nvfp4
from cme295lab.quantization import quality_against_bits
from cme295lab.quantization.schemes import SCHEMES
from cme295lab.transformer import pretrained_or_course
from cme295lab.widgets import quality_figure

reader = loaded if profile == "fast" else pretrained_or_course()
names = ("original", "int8 absmax, tensor", "int4 absmax, tensor", "int4 absmax, block 64", "nf4, double", "fp4",
         "int3 absmax, block 64", "int2 zero-point, block 64")
schemes = {name: SCHEMES[name] for name in names}
for name, quantize in (("mxfp4", quantize_mx), ("nvfp4", quantize_nvfp4)):
    schemes[name] = lambda w, quantize=quantize: ((done := quantize(w)).dequantize(), done.bits_per_value)
num_tokens = 600 if profile == "fast" else 6000 if reader.name == loaded.name else 1500
read = torch.tensor(reader.tokenizer.encode(text))[:num_tokens]

# %%
rows = quality_against_bits(reader.model, read, schemes, context=256)
print(reader.source)
print("scheme                      bits per weight  perplexity  signal to noise")
for row in sorted(rows, key=lambda row: -row.bits_per_weight):
    print(f"{row.scheme:27} {row.bits_per_weight:15.2f} {row.perplexity:11.1f} {row.signal_to_noise_db:13.1f} dB")

display(quality_figure(rows))

# %% [markdown]
# Eight bits are invisible, even with one scale for a whole matrix. Four bits cost one or two per cent if a scale is
# shared by few, and more than forty if it is shared by all. Below four, simple rounding ends.

# %% [markdown]
# Mind what was measured: one small model, one text, weights only, each rounded alone. Models differ. SmolLM2-135M has a
# perplexity of 13.1 on 1,500 tokens of this text; in NF4 20.8 (16.7 if the head is skipped), in int4 by blocks 23.2,
# and over 12,000 with one scale for each tensor. It has read two trillion tokens, 15,000 for each parameter, and seems
# to have put all digits of its weights to use. `cme295lab fetch smollm2` (93 MB) lets these cells read with it.

# %% [markdown]
# ## 11. What this lab leaves out
#
# - **GPTQ** rounds a column, then corrects the columns not yet rounded; **AWQ** and **SmoothQuant** scale channels so
#   that what activations make important is rounded finer. All need data; all make three and four bits better than here.
# - **Quantisation-aware training**, and quantised **KV caches**.
# - **Speed.** Fewer bits are faster only with kernels that read them; here, weights are unpacked first. Decoding gains
#   most: it waits for bytes.

# %% [markdown]
# ## What to remember
#
# - Exponent bits are range, mantissa bits precision. bf16 has fp32's range; fp16 is eight times finer, up to 65,504.
# - A sum stops growing when addends fall below half a step. Accumulate in fp32.
# - The largest value sets the scale, and all that share it pay. Blocks limit that, for 0.1 to 0.5 bits per weight.
# - NF4 puts levels where normal weights are; it does not use them equally, and is not optimal. Measure the model.
#
# ## Your turn
#
# `exercises/float_formats/float_formats.ipynb` (bits to numbers and back, rounding, sums),
# `exercises/quantizers/quantizers.ipynb` (absmax, zero-point, blocks, outliers) and `exercises/nf4/nf4.ipynb` (sixteen
# levels, two to a byte). Lab 09 trains in 16 bits.
