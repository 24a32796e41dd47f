"""The exercise on the KV cache: right answers of many shapes pass, wrong ones fail with their mistake named."""

import pytest
import torch

from cme295lab.grading import checks
from cme295lab.grading.kv_cache import attending, generating
from cme295lab.grading.result import Kind
from cme295lab.transformer import preset
from tests.grading.students import (
    Student,
    assert_refused,
    assert_stubs_and_results_are_told_apart,
    handed_in,
    student,
    written,
)

HIDDEN = {
    "1": {"grouped": "llama-2-70b", "seq": 2048, "batch": 16},
    "2": {"seed": 295, "heads": 3, "head_dim": 8, "seq": 14},
    "3": {"seed": 295, "prompt": 5, "num_tokens": 15},
}
CELLS = {
    "1": ("cache_bytes", "cache_bytes"),
    "2": ("cached_attention", "cached_attention"),
    "3": ("generate", "generate"),
}

FORMULA = "2 * num_layers * num_kv_heads * head_dim * seq * batch * bytes_per_number"
ROTATED = "q, k = rotate(q, held), rotate(k, held)"
JOIN = "k, v = torch.cat((cache[\"k\"], k), dim=1), torch.cat((cache[\"v\"], v), dim=1)"
KEEP = 'cache["k"], cache["v"] = k, v'
SEES = "sees = torch.arange(k.shape[1]) <= held + torch.arange(q.shape[1])[:, None]"
OUT = "return scores.masked_fill(~sees, -math.inf).softmax(dim=-1) @ v"
CALL = "logits = model(unread, cache)"
NEXT = "unread = written[-1:]"
END = "if written[-1] == end_token:\n            break"

RIGHT = [
    ("1", student("the solution")),
    ("1", student("in another order", FORMULA,
                  "(num_layers * batch) * (seq * 2.0) * num_kv_heads * head_dim * bytes_per_number")),
    ("2", student("the solution")),
    ("2", student("rotated when read", ROTATED, "q = rotate(q, held)", KEEP, KEEP + "\n    k = rotate(k, 0)")),
    ("2", student("a list of chunks", ROTATED, ROTATED.replace("held", "len(cache.get('rows', []))")
                  + "\n    rows = cache.setdefault('rows', [])\n    held = len(rows)\n"
                  "    rows += zip(k.unbind(1), v.unbind(1))\n"
                  "    k, v = (torch.stack(part, 1) for part in zip(*rows))\n"
                  "    cache_is_done = True", "if cache:\n        " + JOIN, "", KEEP, "",
                  'held = cache["k"].shape[1] if cache else 0', "held = 0")),
    ("2", student("triangles", SEES, "sees = torch.ones(q.shape[1], k.shape[1]).tril(held).bool()")),
    ("2", student("torch's attention", OUT,
                  "return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=sees)")),
    ("2", student("room from the start", KEEP, "full = {n: torch.zeros(x.shape[0], 99, x.shape[2]) for n, x in "
                  "(('k', k), ('v', v))}\n    for n, x in (('k', k), ('v', v)):\n"
                  "        full[n][:, : x.shape[1]] = x\n        cache[n] = full[n][:, : x.shape[1]]")),
    ("3", student("the solution")),
    ("3", student("reads the last one, too", NEXT, "unread = written[-1:]\n        if len(written) == num_tokens:\n"
                  "            model(unread, cache)")),
    ("3", student("prefill apart", CALL, "logits = logits if len(written) else model(prompt, cache)",
                  NEXT, NEXT + "\n        if len(written) < num_tokens:\n            logits = model(unread, cache)")),
    ("3", student("tensors", "unread = prompt", "unread = torch.tensor(prompt)", NEXT,
                  "unread = torch.tensor(written[-1:])")),
]  # fmt: skip

WRONG = [
    ("1", student("query heads", "num_kv_heads *", "num_heads *", says="query heads are counted", at_most=0.7)),
    ("1", student("keys alone", "2 * num_layers", "num_layers", says="only keys are counted, or only values")),
    ("1", student("queries, too", FORMULA, FORMULA.replace("2 *", "") + " * (2 + num_heads // num_kv_heads)",
                  says="queries are counted as well")),
    ("1", student("one layer", "2 * num_layers", "2", says="that is one layer")),
    ("1", student("one head", "num_kv_heads * ", "", says="that is one head")),
    ("1", student("numbers", " * bytes_per_number", "", says="that is a count of numbers")),
    ("1", student("a square", "* seq", "* seq**2", says="not with its square")),
    ("1", student("one sequence", " * batch", "", says="each sequence has its own cache", at_most=0.8)),
    ("1", student("bits", FORMULA, FORMULA + " * 8", says="these are bits")),
    ("2", student("positions from 0", ROTATED, "q, k = rotate(q, 0), rotate(k, 0)", says="positions start at 0")),
    ("2", student("one too far", ROTATED, "q, k = rotate(q, held + bool(held)), rotate(k, held + bool(held))",
                  says="the largest error")),
    ("2", student("no rotation", ROTATED, "", says="nothing is rotated", at_most=0.0)),
    ("2", student("queries alone", ROTATED, "q = rotate(q, held)", says="keys are not rotated")),
    ("2", student("keys alone", ROTATED, "k = rotate(k, held)", says="queries are not rotated")),
    ("2", student("rotated again", JOIN, JOIN + "\n        k = torch.cat((rotate(k[:, :held], 0), k[:, held:]), 1)",
                  says="keys are rotated again in every call")),
    ("2", student("overwritten", "if cache:\n        " + JOIN, "", says="the cache is overwritten")),
    ("2", student("in front", JOIN, 'k, v = torch.cat((k, cache["k"]), dim=1), torch.cat((v, cache["v"]), dim=1)',
                  says="new keys and values come first")),
    ("2", student("no mask", "~sees", "~sees & False", says="there is no mask")),
    ("2", student("upper left", SEES, "sees = torch.ones(q.shape[1], k.shape[1]).tril().bool()",
                  says="the mask starts at the upper left corner")),
    ("2", student("torch's causal flag", OUT,
                  "return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)",
                  says="the mask starts at the upper left corner")),
    ("2", student("causal flag but for one", OUT, "return torch.nn.functional.scaled_dot_product_attention(q, k, v, "
                  "is_causal=q.shape[1] > 1)", says="the mask starts at the upper left corner", at_most=0.8)),
    ("2", student("not itself", "<= held +", "< held +", says="a token does not see itself")),
    ("2", student("no scale", " / math.sqrt(q.shape[-1])", "", says="not divided by sqrt(head_dim)")),
    ("2", student("all outputs", KEEP, KEEP + "\n    q = torch.cat((cache.get('q', q[:, :0]), q), 1)\n"
                  "    cache['q'], held = q, 0", kind=Kind.WRONG_SHAPE, says="return the output of the new tokens")),
    ("2", student("nothing kept", KEEP, "", says="the cache is overwritten")),
    ("2", student("a cache of its own", "held = cache", "cache = cached_attention.__dict__\n    held = cache",
                  kind=Kind.WRONG_VALUE, says="the largest error")),
    ("3", student("no cache", CALL, "logits = model(prompt + written, None)", kind=Kind.WRONG_ROUTE,
                  says="the whole text is read again for each token", at_most=0.8)),
    ("3", student("everything into the cache", NEXT, "unread = prompt + written",
                  says="tokens are read again that the cache holds already")),
    ("3", student("a new cache each time", CALL, "logits = model(unread, new_cache())",
                  says="each call has a new cache, or none")),
    ("3", student("recomputed with new caches", CALL, "logits = model(prompt + written, new_cache())",
                  kind=Kind.WRONG_ROUTE, says="the whole text is read again", at_most=0.8)),
    ("3", student("prompt token by token", CALL, "for t in unread:\n            logits = model([t], cache)",
                  kind=Kind.WRONG_ROUTE, says="the prompt is read in pieces", at_most=0.9)),
    ("3", student("the first row", "logits[-1]", "logits[0]", says="logits of the first position are used")),
    ("3", student("with the prompt", "return written", "return prompt + written", says="the prompt is in the result")),
    ("3", student("no end", END, "", says="the end token does not end the text", at_most=0.9)),
    ("3", student("without the end token", END, "if written[-1] == end_token:\n            return written[:-1]",
                  says="the end token is missing", at_most=0.9)),
    ("3", student("one too many", "< num_tokens", "<= num_tokens", says="tokens, and 12 are asked for")),
    ("3", student("one too few", "< num_tokens", "< num_tokens - 1", says="tokens, and 12 are asked for")),
    ("3", student("the first one lost", "return written", "return written[1:]", says="the first new token is missing")),
    ("3", student("last token of the prompt alone", "unread = prompt", "unread = prompt[-1:]",
                  says="the model has not read the whole prompt")),
    ("3", student("least likely", "argmax", "argmin", says="the least likely token is chosen")),
    ("3", student("the prompt grows", "unread = prompt", "unread = prompt\n    prompt += [1]",
                  says="changes its input prompt")),
    ("3", student("tensors back", "return written", "return [torch.tensor(t) for t in written]", kind=Kind.WRONG_SHAPE,
                  says="return a list of token numbers")),
]  # fmt: skip


def of(part: str, made: Student):
    return handed_in("kv_cache", *CELLS[part], made)


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize(("part", "made"), RIGHT, ids=str)
def test_right_answers_pass(part: str, made: Student, hidden: bool) -> None:
    result = checks.run(f"kv_cache/{part}", of(part, made), **(HIDDEN[part] if hidden else {}))
    assert result.passed, result.message


@pytest.mark.parametrize(("part", "made"), WRONG, ids=str)
def test_wrong_answers_fail_with_their_mistake_named(part: str, made: Student) -> None:
    result = checks.run(f"kv_cache/{part}", of(part, made))
    assert_refused(result, made)


@pytest.mark.parametrize("part", CELLS)
def test_stubs_and_results_are_told_apart(part: str) -> None:
    assert_stubs_and_results_are_told_apart(f"kv_cache/{part}", *CELLS[part])


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize("mistake", attending.MISTAKES, ids=lambda mistake: mistake.cause[:30])
def test_every_listed_mistake_of_attention_is_found_and_named(mistake: attending.Mistake, hidden: bool) -> None:
    def attend(q, k, v, cache, rotate):
        wide = (part.double() for part in (q, k, v))
        return attending._attend(*wide, cache=cache, mistake=mistake).float()

    result = checks.run("kv_cache/2", attend, **(HIDDEN["2"] if hidden else {}))
    # One too far is the same model: rotations see distances alone.
    assert result.passed if mistake.first == "one more" else mistake.cause in result.message, result.message


def test_the_right_attention_is_the_librarys() -> None:
    """Chunks with rotations against torch's causal attention over everything."""
    case = attending._case(3, 2, 6, 11, [4, 1, 6])
    q, k, v = (part.double() for part in (case.q, case.k, case.v))
    whole = torch.nn.functional.scaled_dot_product_attention(
        attending.rotate(q, 0), attending.rotate(k, 0), v, is_causal=True
    )
    torch.testing.assert_close(case.result(), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 295])
def test_the_models_text_depends_on_all_that_it_has_read(seed: int) -> None:
    """Otherwise a loop that reads too little would pass."""
    case = generating.Case(seed=seed, prompt=(3, 1, 4, 1, 5, 9), num_tokens=12)
    text = case.tokens()
    assert len(set(text)) > 3
    others = [generating.Case(seed=seed, prompt=(first, 1, 4, 1, 5, 9), num_tokens=12).tokens() for first in range(8)]
    assert sum(other != text for other in others) >= 4


def test_the_page_says_what_the_formula_gives() -> None:
    cache_bytes = written("kv_cache", "cache_bytes")["cache_bytes"]
    assert cache_bytes(1, 2, 1, 4, 1, 1, 2) == 16
    for name, kv_heads in (("llama-2-7b", 32), ("llama-3-8b", 8)):
        config = preset(name)
        found = (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim)
        assert found == (32, 32, kv_heads, 128)
        weights = {"llama-2-7b": 13.5, "llama-3-8b": 16.1}[name]
        assert 2 * config.num_parameters / 1e9 == pytest.approx(weights, abs=0.05)
