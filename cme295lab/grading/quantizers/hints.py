"""Hints to the exercise, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "quantizers/1": (
        "The scale is the width of one step. How many steps lie between 0 and the number that is farthest from it?",
        "scale = max|x| / 127, codes = x / scale, rounded *before* they become int8: the conversion cuts off what is "
        "behind the point. If all numbers are 0, take the scale 1.",
        "scale = x.abs().max() / 127, or 1 if that is 0; codes = (x / scale).round().to(torch.int8); back: codes * "
        "scale.",
    ),
    "quantizers/2": (
        "255 steps lie between the smallest number and the largest. The smallest one has the code -128: which code has "
        "0?",
        "zero_point = -round(smallest / scale) - 128. Add it after rounding, clamp the sum, then make it int8. On the "
        "way back, codes - zero_point may be 255: that is no int8.",
        "(x / scale).round() + zero_point, .clamp(-128, 127), .to(torch.int8); back: (codes.float() - zero_point) * "
        "scale. For a constant c, the scale |c| (or 1) and the zero point 0 do it: c then has the code 1, -1 or 0.",
    ),
    "quantizers/3": (
        "Flatten x, and cut it with .split(block_size): its last piece may be shorter. Each piece is part 1.",
        "Without a loop: fill x up with zeros to a whole number of blocks (zeros change no max|x|), view it as "
        "(blocks, block_size), and take amax(dim=1). At the end cut the filling off and give the codes x's shape.",
        "blocks = F.pad(x.flatten(), (0, -x.numel() % block_size)).view(-1, block_size); back: "
        "scales.repeat_interleave(block_size)[: codes.numel()].view(codes.shape) * codes.",
    ),
    "quantizers/4": (
        "First the mask: which columns of x hold a value that reaches the threshold? Then two products, and their sum.",
        "With outlier columns set to 0, rows of x have the scales max|x| / 127, columns of the weights theirs. The "
        "product of the codes needs more than 8 bits: .int() or .float() first. Then multiply by both scales.",
        "outlier = (x.abs() >= threshold).any(dim=0); rest = x.masked_fill(outlier, 0); row = rest.abs().amax(1, "
        "keepdim=True) / 127; column = weight.abs().amax(0, keepdim=True) / 127; (codes @ weight_codes) * row * column "
        "+ x[:, outlier] @ weight[outlier].",
    ),
}
