"""Hints to the exercise, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "float_formats/1": (
        "Cut the code into three whole numbers first: `code >> n` drops the last n bits, `& (2**n - 1)` keeps them. "
        "Then ask what the exponent field is: 0, the largest, or something between.",
        "The bias is 2**(exponent_bits - 1) - 1. Between: (1 + mantissa / 2**mantissa_bits) * 2**(exponent - bias). "
        "With exponent 0 the 1 goes, and the power is that of exponent 1.",
        "exponent = code >> mantissa_bits & (2**exponent_bits - 1); mantissa = code & (2**mantissa_bits - 1); if "
        "exponent == 0: sign * mantissa / 2**mantissa_bits * 2.0 ** (1 - bias), where sign is -1.0 or 1.0.",
    ),
    "float_formats/2": (
        "Choose the power of two first: that of the leading one, but never below 1 - bias. Then x is a number of units "
        "of 2**(power - mantissa_bits), and rounding is rounding that number to a whole one.",
        "Python's round() takes ties to the even number. math.frexp(x) is (f, k) with f from 1/2 to 1, so the leading "
        "one of x has the power k - 1. If rounding gives 2**(mantissa_bits + 1) units, the carry is the exponent's.",
        "Codes of one sign count upward: units + ((power + bias - 1) << mantissa_bits) is right for normal and "
        "subnormal numbers and for carries. Cut it off at the code of inf. Zero, inf and NaN come first.",
    ),
    "float_formats/3": (
        "Where does x lie between its two neighbours? At 0.3 of the way it must go up in 30 % of the draws.",
        "bf16 is fp32 without its last 16 bits: these bits, divided by 2**16, are the position. Add a random number "
        "below 2**16 to the bits: how often does it carry into the upper half?",
        "bits = x.view(torch.int32); noise = torch.randint(0, 2**16, x.shape, generator=generator, dtype=torch.int32); "
        "then cut the last 16 bits off bits + noise (& ~0xFFFF), and view them as float32 again.",
    ),
    "float_formats/4": (
        "What of value did total + value really take? Subtract: (new - total). What is left of the value?",
        "Before adding, put what was lost earlier on top of the value. After adding, compare with that sum, not with "
        "the value alone.",
        "wanted = value + lost; new = total + wanted; the new lost part is wanted - (new - total).",
    ),
}
