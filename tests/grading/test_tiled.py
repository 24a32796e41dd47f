"""Part 2 of the FlashAttention exercise: the check accepts tiled attention and says what is wrong with the rest."""

import pytest
import torch

from cme295lab.grading import checks
from cme295lab.grading.flash_attention import tiled
from cme295lab.grading.result import Kind
from tests.grading.students import Student, student, written

FIRST_LINE = "    output = torch.empty_like(q)\n"
LOOP_KEYS = "range(0, last, block_size)"
K_TILE = "k_tile = k[..., start_n : start_n + block_size, :].float()"
V_TILE = "v_tile = v[..., start_n : start_n + block_size, :].float()"
ADD_O = "o = o * rescale[..., None] + p @ v_tile"
ADD_L = "l = l * rescale + p.sum(-1)"
MASK = "columns > rows[:, None]"

WHOLE = """\
    s = q.float() @ k.float().mT * scale
    if causal:
        s = s.masked_fill(torch.ones(seq, seq, dtype=torch.bool).triu(1), -math.inf)
    return (s.softmax(-1) @ v.float()).to(q.dtype)
"""
WHOLE_HEADS = """\
    output = torch.empty_like(q)
    for head in range(q.shape[1]):
        s = q[0, head].float() @ k[0, head].float().mT * scale
        if causal:
            s = s.masked_fill(torch.arange(seq) > torch.arange(seq)[:, None], -math.inf)
        output[0, head] = (s.softmax(-1) @ v[0, head].float()).to(q.dtype)
    return output
"""
LIST_OF_BLOCKS = """\
    scores = [q.float() @ block.float().mT * scale for block in k.split(block_size, dim=-2)]
    if causal:
        first = range(0, seq, block_size)
        rows = torch.arange(seq)[:, None]
        scores = [s.masked_fill(torch.arange(i, i + s.shape[-1]) > rows, -math.inf) for i, s in zip(first, scores)]
    m = torch.stack([s.amax(-1) for s in scores]).amax(0)[..., None]
    p = [torch.exp(s - m) for s in scores]
    l = sum(x.sum(-1) for x in p)[..., None]
    return (sum(x @ block.float() for x, block in zip(p, v.split(block_size, dim=-2))) / l).to(q.dtype)
"""
KEYS_ONLY = """\
    m = torch.full(q.shape[:-1], -math.inf)
    l, o = torch.zeros_like(m), torch.zeros(q.shape)
    rows = torch.arange(seq)
    for start in range(0, seq, block_size):
        s = q.float() @ k[..., start : start + block_size, :].float().mT * scale
        if causal:
            s = s.masked_fill(torch.arange(start, start + s.shape[-1]) > rows[:, None], -math.inf)
        m_new = torch.maximum(m, s.amax(-1))
        p = torch.exp(s - m_new[..., None])
        l = l * torch.exp(m - m_new) + p.sum(-1)
        o = o * torch.exp(m - m_new)[..., None] + p @ v[..., start : start + block_size, :].float()
        m = m_new
    return (o / l[..., None]).to(q.dtype)
"""
SDPA = "    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)\n"
OPERATOR = "    return torch.ops.aten.scaled_dot_product_attention(q, k, v, is_causal=causal)\n"
MODULE = (
    "    mha = torch.nn.MultiheadAttention(dim, 1, batch_first=True)\n"
    "    return mha(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))[0].view(q.shape)\n"
)
LIBRARY = "    from cme295lab.attention import tiled_attention\n    return tiled_attention(q, k, v, causal=causal)\n"
NUMPY = "    return torch.from_numpy(q.numpy() * 1.0)\n"

RIGHT = [
    student("the solution"),
    student("whole columns of tiles", FIRST_LINE, KEYS_ONLY),
    student(
        "other tile sizes", FIRST_LINE, "    output = torch.empty_like(q)\n    block_size = max(8, block_size // 2)\n"
    ),
    student("exp2", "k_tile.mT * scale", "k_tile.mT * (scale / math.log(2))", "torch.exp(", "torch.exp2("),
    student(
        "divided by l all the way",
        ADD_L,
        "l_new = l * rescale + p.sum(-1)",
        ADD_O,
        "o = o * (l / l_new * rescale)[..., None] + p @ v_tile / l_new[..., None]\n            l = l_new",
        "= o / l[..., None]",
        "= o",
    ),
    student(
        "keys from last to first",
        LOOP_KEYS,
        "reversed(range(0, last, block_size))",
        "m = torch.full(q_tile.shape[:-1], -math.inf)",
        "m = torch.full(q_tile.shape[:-1], -1e30)",
    ),
    student("no early end of the causal loop", "last = start_m + q_tile.shape[-2] if causal else seq", "last = seq"),
    student(
        "accumulators in float64",
        ".float()",
        ".double()",
        "torch.zeros(q_tile.shape)",
        "torch.zeros(q_tile.shape, dtype=torch.float64)",
    ),
    student("einsum", "q_tile @ k_tile.mT * scale", "torch.einsum('bhmd,bhnd->bhmn', q_tile, k_tile) * scale"),
]

WRONG = [
    student("no scale", "k_tile.mT * scale", "k_tile.mT", says="scale is missing", at_most=0.0),
    student("scale 1/dim", "1 / math.sqrt(dim)", "1 / dim", says="scaled by 1/dim", at_most=0.0),
    student(
        "accumulator not rescaled", "o * rescale[..., None] +", "o +", says="accumulator is not rescaled", at_most=0.0
    ),
    student("l not rescaled", "l * rescale +", "l +", says="running sum l is not rescaled", at_most=0.0),
    student("maximum not updated", "            m = m_new\n", "", says="maximum m is not updated", at_most=0.0),
    student(
        "each block its own maximum",
        "torch.maximum(m, scores.amax(-1))",
        "scores.amax(-1)",
        "torch.exp(m - m_new)",
        "torch.ones_like(m)",
        says="its own maximum",
        at_most=0.0,
    ),
    student("not divided by l", "= o / l[..., None]", "= o", says="not divided by the running sum", at_most=0.0),
    student(
        "causal mask one too strict",
        MASK,
        "columns >= rows[:, None]",
        says="causal boundary is one too strict",
        at_most=0.85,
    ),
    student(
        "causal mask one too wide",
        MASK,
        "columns > rows[:, None] + 1",
        says="causal boundary is one too wide",
        at_most=0.85,
    ),
    student(
        "no causal mask",
        "            if causal:\n",
        "            if False:\n",
        says="causal mask is missing inside the tile",
        at_most=0.85,
    ),
    student(
        "causal loop ends early",
        "start_m + q_tile.shape[-2] if causal",
        "start_m if causal",
        says="loop over keys ends before the tile",
        at_most=0.85,
    ),
    student(
        "whole blocks of keys only",
        LOOP_KEYS,
        "range(0, last // block_size * block_size, block_size)",
        says=("does not divide", "left out"),
        at_most=0.85,
    ),
    student(
        "whole blocks of queries only",
        "torch.empty_like(q)",
        "torch.full_like(q, math.nan)",
        "range(0, seq, block_size)",
        "range(0, seq - block_size + 1, block_size)",
        says=("does not divide", "last, incomplete tile"),
        at_most=0.85,
    ),
    student(
        "padded keys count",
        K_TILE,
        f"{K_TILE}\n            k_tile = torch.nn.functional.pad(k_tile, (0, 0, 0, block_size - k_tile.shape[-2]))",
        V_TILE,
        f"{V_TILE}\n            v_tile = torch.nn.functional.pad(v_tile, (0, 0, 0, block_size - v_tile.shape[-2]))",
        says=("does not divide", "keys past the end"),
        at_most=0.95,
    ),
    student(
        "no maximum",
        "torch.maximum(m, scores.amax(-1))",
        "torch.zeros_like(m)",
        says=("do not overflow", "running maximum is not subtracted"),
    ),
    student("the input comes back", FIRST_LINE, "    return q\n", says="input q, untouched", at_most=0.0),
    student("zeros", FIRST_LINE, "    return torch.zeros_like(q)\n", says="every value is zero", at_most=0.0),
    student(
        "the input is overwritten", FIRST_LINE, FIRST_LINE + "    q *= 1.5\n", says="changes its input q", at_most=0.0
    ),
    student(
        "accumulator in float16",
        "o = torch.zeros(q_tile.shape)",
        "o = torch.zeros(q_tile.shape, dtype=q.dtype)",
        ADD_O,
        "o = (o * rescale[..., None] + p @ v_tile).to(q.dtype)",
        kind=Kind.NOT_EXACT,
        says=("accumulator of the output", "float16"),
    ),
    student(
        "l in float16",
        ADD_L,
        "l = (l * rescale + p.sum(-1)).to(q.dtype)",
        kind=Kind.NOT_EXACT,
        says=("running sum l", "float16"),
    ),
    student(
        "all in float16",
        ".float()",
        "",
        "torch.zeros(q_tile.shape)",
        "torch.zeros_like(q_tile)",
        "torch.zeros(q_tile.shape[:-1])",
        "torch.zeros_like(q_tile[..., 0])",
        "torch.full(q_tile.shape[:-1], -math.inf)",
        "torch.full_like(q_tile[..., 0], -math.inf)",
        kind=Kind.NOT_EXACT,
        says=("accumulator of the output", "float16"),
    ),
    student(
        "all in float16 whatever the input",
        ".float()",
        ".half()",
        "p @ v_tile",
        "p.half() @ v_tile",
        kind=Kind.NOT_EXACT,
        says="rounding in float16",
        at_most=0.0,
    ),
    student(
        "mixed dtypes", ".float()", "", kind=Kind.CRASHED, says=("half and single precision are mixed", "p @ v_tile")
    ),
    student(
        "the wrong dtype comes back",
        "return output",
        "return output.float()",
        kind=Kind.WRONG_SHAPE,
        says="o must be float16 like the input",
    ),
    student(
        "the wrong shape comes back",
        "return output",
        "return output[0]",
        kind=Kind.WRONG_SHAPE,
        says="must have the shape",
        at_most=0.0,
    ),
    student(
        "nothing comes back",
        "    return output\n",
        "",
        kind=Kind.WRONG_SHAPE,
        says="must be a tensor, not NoneType",
        at_most=0.0,
    ),
    student(
        "not attempted",
        FIRST_LINE,
        "    raise NotImplementedError()\n",
        kind=Kind.NOT_ATTEMPTED,
        says="raise NotImplementedError",
        at_most=0.0,
    ),
    student(
        "an endless loop",
        FIRST_LINE,
        "    while True:\n        seq = seq + 1\n",
        kind=Kind.TIMED_OUT,
        says=("stopped after", "line "),
        at_most=0.0,
    ),
]

TOO_MUCH_MEMORY = [
    student(
        "the whole score matrix",
        FIRST_LINE,
        WHOLE,
        says=("N x N matrix is materialised", "(2, 768, 768)", "s = q.float() @ k.float().mT * scale"),
    ),
    student(
        "the whole matrix, a head at a time",
        FIRST_LINE,
        WHOLE_HEADS,
        says=("N x N matrix is materialised", "(768, 768)"),
    ),
    student(
        "the block size is ignored",
        FIRST_LINE,
        FIRST_LINE + "    block_size = seq\n",
        says="N x N matrix is materialised",
    ),
    student(
        "a mask for everything",
        FIRST_LINE,
        FIRST_LINE + "    mask = torch.ones(seq, seq, dtype=torch.bool).tril()\n",
        says=("N x N matrix is materialised", "torch.ones(seq, seq"),
    ),
    student("all blocks in a list", FIRST_LINE, LIST_OF_BLOCKS, says=("all kept at once", "held at one time")),
]

NOT_ALLOWED = [
    student("SDPA", FIRST_LINE, SDPA, says=("scaled_dot_product_attention", "ready-made attention")),
    student("SDPA by its operator", FIRST_LINE, OPERATOR, says="ready-made attention"),
    student("a module", FIRST_LINE, MODULE, says="ready-made attention"),
    student("the library's own", FIRST_LINE, LIBRARY, says="calls the library's cme295lab.attention"),
    student("numpy", FIRST_LINE, NUMPY, says="leaves PyTorch"),
]


def attention_of(made: Student):
    return written("flash_attention", "tiled_attention", *made.changes)["tiled_attention"]


def says_all(made: Student, message: str) -> None:
    for words in made.says:
        assert words in message


@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_tiled_check_accepts_tiled_attention(made: Student) -> None:
    result = checks.run("flash_attention/2", attention_of(made))
    assert result.passed, result.message
    assert result.score == 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 295, "heads": 3, "dim": 8, "ragged": 101},
        {"seed": 1, "dtype": torch.bfloat16},
        {"seed": 2, "dtype": torch.float16},
    ],
    ids=str,
)
def test_tiled_check_accepts_the_solution_on_other_inputs(options) -> None:
    result = checks.run("flash_attention/2", attention_of(RIGHT[0]), **options)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_tiled_check_names_the_mistake(made: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    if made.kind is Kind.TIMED_OUT:
        monkeypatch.setattr(tiled, "TIME_LIMIT_S", 0.5)
    result = checks.run("flash_attention/2", attention_of(made))
    assert not result.passed
    assert result.kind is (Kind.WRONG_VALUE if made.kind is Kind.PASSED else made.kind), result.message
    assert result.score <= made.at_most, result.score
    says_all(made, result.message)


@pytest.mark.parametrize("made", TOO_MUCH_MEMORY, ids=str)
def test_tiled_check_rejects_an_n_by_n_matrix(made: Student) -> None:
    result = checks.run("flash_attention/2", attention_of(made))
    assert result.kind is Kind.TOO_MUCH_MEMORY, result.message
    assert result.score <= 0.3
    says_all(made, result.message)


@pytest.mark.parametrize("made", NOT_ALLOWED, ids=str)
def test_tiled_check_rejects_ready_made_attention(made: Student) -> None:
    result = checks.run("flash_attention/2", attention_of(made))
    assert result.kind is Kind.NOT_ALLOWED, result.message
    assert result.score == 0.0
    says_all(made, result.message)


def test_hidden_inputs_catch_memorised_answers() -> None:
    """Code that knows the visible inputs by heart passes the visible check, and fails both together."""
    known: list[tuple[torch.Tensor, torch.Tensor]] = []
    solution = attention_of(RIGHT[0])

    def learns(q, k, v, causal, block_size):
        known.append((q.clone(), solution(q, k, v, causal, block_size)))
        return known[-1][1]

    def recites(q, k, v, causal, block_size):
        found = [o for seen, o in known if seen.shape == q.shape and torch.equal(seen, q)]
        return found[-1 if causal else 0] if found else torch.zeros_like(q)

    assert checks.run("flash_attention/2", learns).passed
    visible = checks.run("flash_attention/2", recites)
    hidden = checks.run("flash_attention/2", recites, seed=295)
    assert visible.score > 0.6
    assert (visible & hidden).score < 0.2
