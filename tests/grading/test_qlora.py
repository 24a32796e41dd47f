"""The exercise on QLoRA: right answers of many shapes pass, wrong ones fail with their mistake named."""

from functools import partial

import pytest
import torch

from cme295lab.grading import checks
from cme295lab.grading.qlora import linear, memory, paging, products
from cme295lab.grading.result import Kind
from cme295lab.quantization import nf4
from tests.grading.students import Student, assert_refused, assert_stubs_and_results_are_told_apart, handed_in, student

TOPIC = "qlora"
HIDDEN = {
    "1": {"seed": 295, "tokens": 5, "in_features": 192, "out_features": 96, "rank": 3},
    "2": {"rank": 8, "block_size": 128, "group_size": 512},
    "3": {"seed": 295, "num_uses": 80, "size": 7},
}
CELLS = {
    "1": ("linear", "qlora_linear"),
    "2": ("bytes", memory.FUNCTIONS),
    "3": ("pages", "page_moves"),
}

KEEP = "ctx.weight = weight"
PRODUCT = "return x @ weight.dequantize(x.dtype).T"
BACK = "return g @ ctx.weight.dequantize(g.dtype), None"
BASE = "FrozenProduct.apply(x, weight)"
ADAPTER = "(x @ A.to(x.dtype).T @ B.to(x.dtype).T)"
LAYER = f"return {BASE} + scale * {ADAPTER}"
ALL_BY_HAND = """class Whole(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, A, B, scale):
            ctx.weight, ctx.scale = weight, scale
            ctx.save_for_backward(x, A, B)
            a, b = A.to(x.dtype), B.to(x.dtype)
            return x @ weight.dequantize(x.dtype).T + scale * (x @ a.T @ b.T)

        @staticmethod
        def backward(ctx, g):
            x, A, B = ctx.saved_tensors
            a, b = A.to(x.dtype), B.to(x.dtype)
            rows, grows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
            of_x = g @ ctx.weight.dequantize(x.dtype) + ctx.scale * (g @ b @ a)
            of_a = ctx.scale * (grows @ b).T @ rows
            of_b = ctx.scale * grows.T @ (rows @ a.T)
            return of_x, None, of_a, of_b, None
    return Whole.apply(x, weight, A, B, scale)"""
OF_X = "g @ ctx.weight.dequantize(x.dtype) + ctx.scale * (g @ b @ a)"
CHECKPOINT = (
    "from torch.utils.checkpoint import checkpoint\n"
    "    base = checkpoint(lambda x: x @ weight.dequantize(x.dtype).T, x, use_reentrant=False)\n"
    f"    return base + scale * {ADAPTER}"
)
HOOKS = (
    "with torch.autograd.graph.saved_tensors_hooks(\n"
    "        lambda t: None if t.numel() == weight.shape[0] * weight.shape[1] else t,\n"
    "        lambda t: weight.dequantize(x.dtype).T if t is None else t,\n"
    "    ):\n"
    f"        base = x @ weight.dequantize(x.dtype).T\n    return base + scale * {ADAPTER}"
)

FULL = "return 12 * (base + num_other)"
BASE_COUNT = "num_layers * sum(rows * columns for rows, columns in matrices)"
ADAPTER_COUNT = "num_layers * sum(rank * (rows + columns) for rows, columns in matrices)"
BITS = "bits = 4 + 8 / block_size + 32 / (block_size * group_size)"
RUN = "return base * bits / 8 + 2 * num_other + 16 * adapters"

USED = "present.remove(page)"
WHILE = "while sum(page_bytes[other] for other in present) + page_bytes[page] > budget_bytes:"
OUT = 'moves.append(("out", present.pop(0)))'
IN = 'moves.append(("in", page))'
MOVED = "sum(page_bytes[page] for _, page in moves)"

RIGHT = [
    *((part, student("the solution")) for part in CELLS),
    ("1", student("all by hand", LAYER, ALL_BY_HAND)),
    ("1", student("a checkpoint", LAYER, CHECKPOINT)),
    ("1", student("saved-tensor hooks", LAYER, HOOKS)),
    ("1", student("the adapter in float32", ADAPTER, "(x.float() @ A.T @ B.T).to(x.dtype)")),
    ("1", student("x is scaled first", f"scale * {ADAPTER}", "(scale * x) @ A.to(x.dtype).T @ B.to(x.dtype).T")),
    ("1", student("functional.linear", LAYER, "f = torch.nn.functional.linear\n    return torch.add(" + BASE +
                  ", f(f(x, A.to(x.dtype)), B.to(x.dtype)), alpha=scale)")),
    ("1", student("einsum", PRODUCT, "return torch.einsum('...i,oi->...o', x, weight.dequantize(x.dtype))", BACK,
                  "return torch.einsum('...o,oi->...i', g, ctx.weight.dequantize(g.dtype)), None")),
    ("1", student("x is saved, too", KEEP, KEEP + "\n        ctx.save_for_backward(x)")),
    ("2", student("in the other order", RUN, "weights = (base * 4 + base / block_size * 8 + base / block_size / "
                  "group_size * 32) / 8\n    return weights + 2 * num_other + (4 + 4 + 8) * adapters")),
    ("2", student("a loop", "adapters = " + ADAPTER_COUNT, "adapters = 0\n    for _ in range(num_layers):\n        for "
                  "out, inside in matrices:\n            adapters += rank * inside + out * rank")),
    ("3", student("an ordered dictionary", "moves, present = [], []", "from collections import OrderedDict\n    moves, "
                  "present = [], OrderedDict()", USED, "present.move_to_end(page)", "present.pop(0)",
                  "present.popitem(last=False)[0]", "present.append(page)", "present[page] = None")),
    ("3", student("times of the last use", "moves, present = [], []\n    for page in uses:",
                  "moves, last = [], {}\n    for time, page in enumerate(uses):", "if page in present:\n            "
                  + USED, "if page in last:\n            pass", "in present)", "in last)", "present.pop(0)))",
                  "min(last, key=last.get)))\n                del last[moves[-1][1]]", "present.append(page)",
                  "last[page] = time")),
    ("3", student("lists of moves", IN, 'moves.append(["in", page])', "return moves", "return tuple(moves)")),
    ("3", student("a tensor of bytes", MOVED, "torch.tensor(" + MOVED + ")")),
]  # fmt: skip

MUCH = Kind.TOO_MUCH_MEMORY
WRONG = [
    ("1", student("plain PyTorch", LAYER, f"return x @ weight.dequantize(x.dtype).T + scale * {ADAPTER}", kind=MUCH,
                  says="the dequantised matrix is kept", at_most=0.85)),
    ("1", student("saved", KEEP + "\n        " + PRODUCT, "W = weight.dequantize(x.dtype)\n"
                  "        ctx.save_for_backward(W)\n        return x @ W.T", BACK, "return g @ ctx.saved_tensors[0], "
                  "None", kind=MUCH, says="the dequantised matrix is kept", at_most=0.85)),
    ("1", student("on ctx", KEEP + "\n        " + PRODUCT, "ctx.W = weight.dequantize(x.dtype)\n"
                  "        return x @ ctx.W.T", BACK, "return g @ ctx.W, None", kind=MUCH,
                  says="the dequantised matrix is kept", at_most=0.85)),
    ("1", student("cached", LAYER, "if not hasattr(weight, 'W'):\n        weight.W = weight.dequantize(x.dtype)\n    "
                  f"return x @ weight.W.T + scale * {ADAPTER}", kind=MUCH, says="is kept", at_most=0.85)),
    ("1", student("merged", LAYER, "return x @ (weight.dequantize(x.dtype) + scale * (B @ A).to(x.dtype)).T", kind=MUCH,
                  says="is kept", at_most=0.85)),
    ("1", student("B @ A", ADAPTER, "(x @ (B @ A).to(x.dtype).T)", kind=MUCH, says="multiply x by A first",
                  at_most=0.85)),
    ("1", student("the 4-bit weight among tensors", KEEP, "ctx.save_for_backward(weight)", kind=Kind.CRASHED,
                  says="keep it as ctx.weight")),
    ("1", student("the base trains", LAYER, "W = weight.dequantize(x.dtype).requires_grad_()\n    return x @ W.T + "
                  f"scale * {ADAPTER}", says="the base is frozen, and its 4 bits", at_most=0.75)),
    ("1", student("a parameter", LAYER, "W = torch.nn.Parameter(weight.dequantize(x.dtype))\n    return x @ W.T + "
                  f"scale * {ADAPTER}", says="requires a gradient", at_most=0.75)),
    ("1", student("no scale", "scale * (", "(", says="the scale is forgotten: the adapter")),
    ("1", student("scale on both", LAYER, f"return scale * ({BASE} + {ADAPTER})", says="multiplies the base as well")),
    ("1", student("no adapter", LAYER, f"return {BASE}", says="the adapter is missing")),
    ("1", student("no base", LAYER, f"return scale * {ADAPTER}", says="the base is missing")),
    ("1", student("scale / r", "scale * (", "scale / len(A) * (", says="it is alpha / r already")),
    ("1", student("scale twice", "scale * (", "scale * scale * (", says="the scale is used twice")),
    ("1", student("adapters in 4 bits", LAYER, "A, B = (nf4.quantize(t.detach()).dequantize() for t in (A, B))\n    "
                  + LAYER, says="A and B are rounded to 4 bits")),
    ("1", student("adapters detached", ADAPTER, "(x @ A.detach().to(x.dtype).T @ B.detach().to(x.dtype).T)",
                  says="A gets no gradient")),
    ("1", student("no gradients at all", LAYER, "with torch.no_grad():\n        " + LAYER, says="no grad_fn")),
    ("1", student("base without gradient", LAYER, "with torch.no_grad():\n        base = x @ weight.dequantize(x.dtype)"
                  f".T\n    return base + scale * {ADAPTER}", says="lacks the base's part")),
    ("1", student("None for x", BACK, "return None, None", says="lacks the base's part")),
    ("1", student("no adapter part", ADAPTER, "(x.detach() @ A.to(x.dtype).T @ B.to(x.dtype).T)",
                  says="lacks the adapter's part")),
    ("1", student("nothing for x", LAYER, "x = x.detach()\n    " + LAYER, says="x gets no gradient")),
    ("1", student("by hand, no scale to x", LAYER, ALL_BY_HAND.replace("+ ctx.scale * (g @ b", "+ (g @ b"),
                  says="its adapter's part has it")),
    ("1", student("by hand, base alone", LAYER, ALL_BY_HAND.replace(" + ctx.scale * (g @ b @ a)", ""),
                  says="lacks the adapter's part")),
    ("1", student("by hand, adapter alone", LAYER, ALL_BY_HAND.replace("g @ ctx.weight.dequantize(x.dtype) + ", ""),
                  says="lacks the base's part")),
    ("1", student("by hand, scale on both", LAYER, ALL_BY_HAND.replace(OF_X, "ctx.scale * (" + OF_X.replace(
        "ctx.scale * ", "") + ")"), says="multiplies the base's part")),
    ("1", student("by hand, no scale to A", LAYER, ALL_BY_HAND.replace("of_a = ctx.scale * ", "of_a = "),
                  says="forgotten in the gradient of A")),
    ("1", student("by hand, no scale to B", LAYER, ALL_BY_HAND.replace("of_b = ctx.scale * ", "of_b = "),
                  says="forgotten in the gradient of B")),
    ("1", student("by hand, in two dimensions", LAYER, ALL_BY_HAND.replace("x.reshape(-1, x.shape[-1]), "
                  "g.reshape(-1, g.shape[-1])", "x, g"), kind=Kind.CRASHED, at_most=0.95)),
    ("1", student("by hand, no gradient of A", LAYER, ALL_BY_HAND.replace("None, of_a, of_b", "None, None, of_b"),
                  says="A gets no gradient")),
    ("1", student("transposed", ".dequantize(x.dtype).T", ".dequantize(x.dtype)", kind=Kind.CRASHED)),
    ("1", student("a value for the weight", "dtype), None", "dtype), g", kind=Kind.CRASHED,
                  says="return None in its place")),
    ("1", student("one value", "dtype), None", "dtype)", kind=Kind.CRASHED, says="one value for each argument")),
    ("1", student("mixed dtypes", "A.to(x.dtype)", "A", kind=Kind.CRASHED, says="convert A and B to x.dtype")),
    ("1", student("float32 result", LAYER, f"return {BASE} + scale * (x.float() @ A.T @ B.T)", kind=Kind.WRONG_SHAPE,
                  says="must be bfloat16 like the input, yours is float32", at_most=0.95)),
    ("1", student("bfloat16 always", LAYER, "dtype = x.dtype\n    x = x.bfloat16()\n    return (" + LAYER.removeprefix(
        "return ") + ").to(dtype)", says="rounded to 16 bits on the way")),
    ("1", student("dequantised in float32", PRODUCT, "return (x.float() @ weight.dequantize(torch.float32).T)"
                  ".to(x.dtype)", says="ask for x.dtype, weight.dequantize(x.dtype)", at_most=0.95)),
    ("1", student("in place", LAYER, "A.data.mul_(1.01)\n    " + LAYER, says="changes its input A in place")),
    ("2", student("masters", FULL, "return 16 * (base + num_other)", says="no float32 masters", at_most=0.85)),
    ("2", student("one state", FULL, "return 8 * (base + num_other)", says="two states", at_most=0.85)),
    ("2", student("no gradients", FULL, "return 10 * (base + num_other)", says="a part is missing", at_most=0.85)),
    ("2", student("no states", FULL, "return 4 * (base + num_other)", says="Adam's states are missing", at_most=0.85)),
    ("2", student("full without others", FULL, "return 12 * base", says="trains all parameters", at_most=0.85)),
    ("2", student("one layer", BASE_COUNT, "sum(rows * columns for rows, columns in matrices)",
                  says="the matrices of one layer")),
    ("2", student("4.0 bits", BITS, "bits = 4", says="4 bits are the codes alone")),
    ("2", student("4.5 bits", BITS, "bits = 4 + 32 / block_size", says="counted as float32: with double quantisation")),
    ("2", student("4.125 bits", BITS, "bits = 4 + 8 / block_size", says="the scales of the groups are forgotten")),
    ("2", student("4.127 bits", BITS, "bits = 4.127", says="4.127 is rounded")),
    ("2", student("scales shared by weights", "(block_size * group_size)", "group_size", says="by a group of blocks")),
    ("2", student("bits", "base * bits / 8", "base * bits", says="counted in bits")),
    ("2", student("16 bits", "base * bits / 8", "base * 2", says="the base is counted with 16 bits")),
    ("2", student("others in 4 bits", RUN, "return (base + num_other) * bits / 8 + 16 * adapters",
                  says="num_other is counted in 4 bits")),
    ("2", student("no others", " + 2 * num_other", "", says="num_other is missing: embeddings")),
    ("2", student("others float32", "2 * num_other +", "4 * num_other +", says="it is 16-bit")),
    ("2", student("others train", "2 * num_other +", "12 * num_other +", says="it is frozen")),
    ("2", student("weights alone", "16 * adapters", "4 * adapters", says="add their gradients")),
    ("2", student("no states of adapters", "16 * adapters", "8 * adapters", says="Adam's states of the adapters")),
    ("2", student("16-bit adapters", "16 * adapters", "12 * adapters", says="counted with 16 bits")),
    ("2", student("states of the base", RUN, RUN + " + 8 * base", says="states are counted for the frozen base")),
    ("2", student("states of all", RUN, RUN + " + 8 * (base + num_other)", says="counted for frozen parameters")),
    ("2", student("gradients of the base", RUN, RUN + " + 2 * base", says="gradients are counted for the frozen")),
    ("2", student("both", RUN, RUN + " + 10 * base", says="gradients and states are counted for the frozen")),
    ("2", student("A alone", "rank * (rows + columns)", "rank * columns", says="only A is counted")),
    ("2", student("B alone", "rank * (rows + columns)", "rank * rows", says="only B is counted")),
    ("2", student("square", "rank * (rows + columns)", "2 * rank * columns", says="taken for square")),
    ("2", student("adapters of one layer", "adapters = num_layers * ", "adapters = ",
                  says="the adapters of one layer")),
    ("2", student("no rank", "rank * (rows + columns)", "(rows + columns)", says="the rank is forgotten")),
    ("2", student("no adapters", " + 16 * adapters", "", says="the adapters are missing")),
    ("3", student("most recently used", "present.pop(0)", "present.pop()", says="the page that was used last")),
    ("3", student("first in, first out", "if page in present:\n            " + USED, "if page in present:\n"
                  "            continue", says="although it was used since")),
    ("3", student("everything", WHILE + "\n                " + OUT, "if " + WHILE.removeprefix("while ") + "\n"
                  '                moves += [("out", other) for other in present]\n                present = []',
                  says="only as many as needed")),
    ("3", student("strict", "> budget_bytes:", ">= budget_bytes:", says="filled to the last byte")),
    ("3", student("one", "while sum", "if sum", says="go on until it fits", at_most=0.8)),
    ("3", student("no eviction", WHILE, "while False:", says="the budget is exceeded")),
    ("3", student("the largest", "present.pop(0)", "present.pop(present.index(max(present, key=page_bytes.get)))",
                  says="the largest page")),
    ("3", student("pages counted", WHILE, "while len(present) >= budget_bytes // max(page_bytes.values()):",
                  says="the budget is in bytes", at_most=0.8)),
    ("3", student("in before out", "        else:\n            while", "        else:\n            " + IN
                  + "\n            while", OUT + "\n            " + IN, OUT,
                  says="the page comes in before another leaves")),
    ("3", student("read again", USED, USED + "\n            " + IN, says="is read again")),
    ("3", student("written at the end", "return moves,", 'moves += [("out", page) for page in present]\n    return '
                  "moves,", says="what is on the GPU stays there")),
    ("3", student("reads alone", "for _, page in moves)", "for way, page in moves if way == 'in')",
                  says="only reads are counted", at_most=0.85)),
    ("3", student("write-backs alone", "for _, page in moves)", "for way, page in moves if way == 'out')",
                  says="only write-backs", at_most=0.85)),
    ("3", student("reads twice", "for _, page in moves)", "for way, page in 2 * moves if way == 'in')",
                  says="reads are counted twice", at_most=0.85)),
    ("3", student("write-backs twice", MOVED, MOVED.replace("page_bytes[page]",
                  "page_bytes[page] * (2 if _ == 'out' else 1)"), says="evictions are counted twice: one",
                  at_most=0.85)),
    ("3", student("moves counted", MOVED, "len(moves)", says="moves are counted: add up", at_most=0.85)),
    ("3", student("in bits", MOVED, "8 * " + MOVED, says="bits are counted", at_most=0.85)),
    ("3", student("moves alone", ", " + MOVED, "", kind=Kind.WRONG_SHAPE, says="return (moves, moved_bytes)")),
    ("3", student("names alone", IN, "moves.append(page)", MOVED, "0", kind=Kind.WRONG_SHAPE,
                  says='a list of ("in", page)')),
]  # fmt: skip


def of(part: str, made: Student):
    cell, names = CELLS[part]
    return handed_in(TOPIC, cell, names, made, nf4=nf4)


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize(("part", "made"), RIGHT, ids=str)
def test_right_answers_pass(part: str, made: Student, hidden: bool) -> None:
    result = checks.run(f"{TOPIC}/{part}", of(part, made), **(HIDDEN[part] if hidden else {}))
    assert result.passed, result.message


@pytest.mark.parametrize(("part", "made"), WRONG, ids=str)
def test_wrong_answers_fail_with_their_mistake_named(part: str, made: Student) -> None:
    result = checks.run(f"{TOPIC}/{part}", of(part, made))
    assert_refused(result, made)


@pytest.mark.parametrize("part", CELLS)
def test_stubs_and_results_are_told_apart(part: str) -> None:
    assert_stubs_and_results_are_told_apart(f"{TOPIC}/{part}", *CELLS[part])


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize("pager", paging.ORDER + paging.BYTES, ids=lambda pager: pager.cause[:40])
def test_every_listed_mistake_of_paging_is_found_and_named(pager: paging.Pager, hidden: bool) -> None:
    result = checks.run("qlora/3", partial(_paged, pager), **(HIDDEN["3"] if hidden else {}))
    assert pager.cause in result.message, result.message


def _paged(pager: paging.Pager, uses, page_bytes, budget_bytes):
    return paging.paged(uses, page_bytes, budget_bytes, pager)


@pytest.mark.parametrize("seed", range(4))
def test_the_right_gradients_are_autograds(seed: int) -> None:
    case = linear.Case(seed=seed, shape=(2, 3), dtype=torch.float64)
    tensors = {name: tensor.double().requires_grad_() for name, tensor in case.tensors.items()}
    x, a, b = tensors["x"], tensors["A"], tensors["B"]
    y = x @ case.weight().values().double().T + case.scale * (x @ (b @ a).T)
    y.backward(case.tensors["upstream"].double())
    torch.testing.assert_close(case.right_output(), y.detach())
    for name, right in case.right_gradients().items():
        torch.testing.assert_close(right, tensors[name].grad)


def test_the_pages_example_of_the_layer() -> None:
    x, weight, a, b = (torch.tensor([row]) for row in ([4.0, 1.0], [2.0, 1.0], [1.0, -1.0], [3.0]))
    assert products.output(x, weight, a, b, 0.5).tolist() == [[13.5]]
    found = products.gradients(x, weight, a, b, 0.5, torch.ones(1, 1))
    assert found["x"].tolist() == [[3.5, -0.5]]


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize("layer", products.FORWARD, ids=lambda layer: layer.cause[:36])
def test_every_listed_mistake_of_the_output_is_found_and_named(layer: products.Layer, hidden: bool) -> None:
    def wrong(x, weight, A, B, scale):
        return products.output(x, weight.values(), A, B, scale, layer).to(x.dtype)

    result = checks.run("qlora/1", wrong, **(HIDDEN["1"] if hidden else {}))
    assert layer.cause in result.message, result.message


def test_rounding_to_four_bits_is_the_librarys() -> None:
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    assert float((products.in_four_bits(x) - nf4.quantize(x).dequantize()).abs().max()) < 1e-6


def test_published_sizes_come_out() -> None:
    """780 GB for 65B in full; adapters of rank 64 on Llama-2 7B have 159,907,840 parameters; 4.127 bits."""
    assert memory._full(memory.LLAMA_65B).want / 1e9 == pytest.approx(783, abs=1)
    without = memory.qlora_bytes(memory.LLAMA_7B, 0, 4.0)
    assert (memory.qlora_bytes(memory.LLAMA_7B, 64, 4.0) - without) / 16 == 159_907_840
    assert memory._in_layers(memory.LLAMA_7B) + memory.LLAMA_7B["num_other"] == 6_738_415_616
    assert memory._in_layers(memory.LLAMA_3_8B) + memory.LLAMA_3_8B["num_other"] == 8_030_261_248
    assert memory._qlora(memory.LLAMA_65B, 64, 64, 256).want / 1e9 < 48
    page = memory.qlora_bytes({"num_layers": 2, "matrices": [(8, 4)], "num_other": 10}, 1, 4.127)
    assert page == pytest.approx(33.02 + 20 + 384, abs=0.01)


def test_the_pages_example_of_paging() -> None:
    moves, moved = paging.paged("abacb", {"a": 2, "b": 2, "c": 3}, 5)
    assert moves == [("in", "a"), ("in", "b"), ("out", "b"), ("in", "c"), ("out", "a"), ("in", "b")]
    assert moved == 13


@pytest.mark.parametrize("seed", range(5))
def test_paging_is_what_times_of_last_use_say(seed: int) -> None:
    """Another way to find the page that was not used for longest: look back through the uses."""
    case = paging.random_case(seed, 50)
    present: set[str] = set()
    moves = []
    for time, page in enumerate(case.uses):
        before = case.uses[:time]
        while page not in present and sum(case.page_bytes[p] for p in present | {page}) > case.budget_bytes:
            oldest = min(present, key=lambda p: max(i for i, used in enumerate(before) if used == p))
            present.remove(oldest)
            moves.append(("out", oldest))
        if page not in present:
            moves.append(("in", page))
        present.add(page)
    assert case.right()[0] == moves
