"""Part 1 of the exercise on ZeRO: shards and the way back."""

import pytest

from cme295lab.grading import checks
from cme295lab.grading.result import Kind
from tests.grading.students import Student, assert_refused, student
from tests.grading.zero_students import made_in

ROW = "    row = torch.cat([tensor.detach().flatten() for tensor in tensors])\n"
PAD = "    row = nn.functional.pad(row, (0, -row.numel() % num_ranks))\n"
RETURN = "return row.view(num_ranks, -1)[rank].clone()"
BY_TENSOR = """\
    pieces = []
    for tensor in tensors:
        row = nn.functional.pad(tensor.flatten(), (0, -tensor.numel() % num_ranks))
        pieces.append(row.view(num_ranks, -1)[rank])
    return torch.cat(pieces)
"""
FILL = """\
    length = -(-row.numel() // num_ranks)
    shard = torch.zeros(length)
    part = row[rank * length : (rank + 1) * length]
    shard[: len(part)] = part
    return shard
"""
WALK = """\
    pieces, start = [], 0
    for tensor in tensors:
        pieces.append(row[start : start + tensor.numel()].reshape(tensor.shape))
        start += tensor.numel()
    return pieces
"""
SIZES = "    sizes = [tensor.numel() for tensor in tensors]\n"

RIGHT = [
    student("the solution"),
    student("a shard that is filled", PAD, FILL),
    student("a walk through the row", SIZES, WALK),
    student("tensor_split", RETURN, "return row.tensor_split(num_ranks)[rank].clone()"),
]
WRONG = [
    student("the rest is dropped", PAD, "    row = row[: row.numel() // num_ranks * num_ranks]\n",
            says="the last elements are in no shard"),
    student("the last one has the rest", PAD, "", RETURN,
            "n = row.numel() // num_ranks\n    end = None if rank == num_ranks - 1 else (rank + 1) * n\n"
            "    return row[rank * n : end].clone()", kind=Kind.WRONG_SHAPE, says="all shards must be equally long"),
    student("the last one is short", PAD, "", RETURN,
            "n = -(-row.numel() // num_ranks)\n    return row[rank * n : (rank + 1) * n].clone()",
            kind=Kind.WRONG_SHAPE, says="pad the last one with zeros"),
    student("each tensor by itself", ROW, BY_TENSOR, says="each tensor is cut by itself"),
    student("every N-th", RETURN, "return row[rank::num_ranks].clone()", says="every N-th element is taken"),
    student("a view", RETURN, "return row.view(num_ranks, -1)[rank]", kind=Kind.NOT_SHARDED,
            says="the whole row stays"),
    student("padding in front", "(0, -row.numel() % num_ranks)", "(-row.numel() % num_ranks, 0)",
            says="the padding stands in front"),
    student("padding of ones", PAD, "    row = torch.cat([row, row[:1].expand(-row.numel() % num_ranks)])\n",
            says="the padding must be zeros"),
    student("the next one's", "[rank].clone()", "[(rank + 1) % num_ranks].clone()", says="this is the shard of rank 1"),
    student("transposed", "piece.view(tensor.shape)", "piece.view(tensor.shape[::-1])", kind=Kind.WRONG_SHAPE,
            says="must have the shape"),
    student("padding in the last tensor", "row[: sum(sizes)]", "row[len(row) - sum(sizes) :]", says="tensor 0"),
    student("the input is overwritten", ROW, ROW + "    tensors[0].zero_()\n", says="changes its input tensors"),
    student("one tensor", "[piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors)]", "row",
            kind=Kind.WRONG_SHAPE, says="return a list of 3 tensors"),
    student("not attempted", ROW, "    raise NotImplementedError()\n", SIZES, "    raise NotImplementedError()\n",
            kind=Kind.NOT_ATTEMPTED, at_most=0.0),
    student("half attempted", SIZES, "    raise NotImplementedError()\n", kind=Kind.NOT_ATTEMPTED, at_most=0.8),
]  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"seed": 295, "extra": 3}], ids=str)
@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_shards_check_accepts_right_shards(made: Student, options) -> None:
    result = checks.run("zero_sharding/1", made_in("shards", made, "shard_of", "unflatten"), **options)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_shards_check_names_the_mistake(made: Student) -> None:
    result = checks.run("zero_sharding/1", made_in("shards", made, "shard_of", "unflatten"))
    assert_refused(result, made)


def test_shards_check_wants_both_functions() -> None:
    result = checks.run("zero_sharding/1", made_in("shards", RIGHT[0], "shard_of"))
    assert result.kind is Kind.WRONG_SHAPE
    assert "the two functions" in result.message
