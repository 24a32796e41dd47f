import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cme295lab.pretraining.packing import (
    IGNORED_TARGET,
    PADDING_DOCUMENT,
    Batch,
    MixtureDataset,
    PackedDataset,
    best_fit,
    cut_to_fit,
    next_fit,
)

END = 0
FILLINGS = ("best-fit", "next-fit", "one-per-row", "cut-to-fit")
DOCUMENTS = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=23), min_size=1, max_size=12)


def epoch_of(data: PackedDataset) -> Batch:
    return data.batch(0, data.num_rows)


def pieces_of(batch: Batch) -> list[tuple[list[int], list[int], list[int]]]:
    """(tokens, targets, positions) of each piece, padding left out."""
    found = []
    for row in range(len(batch.tokens)):
        for number in batch.documents[row].unique().tolist():
            here = batch.documents[row] == number
            if number != PADDING_DOCUMENT:
                found.append(tuple(part[row][here].tolist() for part in (batch.tokens, batch.targets, batch.positions)))
    return found


def test_packing_by_hand():
    """The picture in the module's docstring."""
    the, cat, two, plus = 1, 2, 3, 4
    batch = epoch_of(PackedDataset([[the, cat], [two, plus, two]], seq=8, end_token=END, filling="next-fit"))
    assert batch.tokens.tolist() == [[the, cat, END, two, plus, two, END, END]]
    assert batch.targets.tolist() == [[cat, END, -100, plus, two, END, -100, -100]]
    assert batch.documents.tolist() == [[1, 1, 1, 2, 2, 2, 2, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0]]
    assert batch.num_targets == 5


def test_a_long_document_by_hand():
    batch = epoch_of(PackedDataset([[1, 2, 3, 4, 5]], seq=4, end_token=END))
    rows = sorted(zip(batch.tokens.tolist(), batch.targets.tolist(), batch.documents.tolist()))
    assert rows == [
        ([1, 2, 3, 4], [2, 3, 4, 5], [1, 1, 1, 1]),  # the last token's target is in the next piece
        ([5, END, END, END], [END, -100, -100, -100], [1, 1, 0, 0]),
    ]


@pytest.mark.parametrize("filling", FILLINGS)
@settings(max_examples=30, deadline=None)
@given(documents=DOCUMENTS, seq=st.integers(2, 17))
def test_packing_predicts_each_token_but_the_first_exactly_once(filling, documents, seq):
    data = PackedDataset(documents, seq=seq, end_token=END, filling=filling)
    batch = epoch_of(data)
    predicted = sorted(target for row in batch.targets.tolist() for target in row if target != IGNORED_TARGET)
    assert predicted == sorted(token for document in documents for token in [*document[1:], END])
    assert data.num_targets == len(predicted) == batch.num_targets
    read = [token for tokens, _, _ in pieces_of(batch) for token in tokens if token != END]
    assert sorted(read) == sorted(itertools.chain(*documents))


@pytest.mark.parametrize("filling", FILLINGS)
@settings(max_examples=30, deadline=None)
@given(documents=DOCUMENTS, seq=st.integers(2, 17))
def test_pieces_of_a_row_are_runs_of_one_document_with_their_own_positions(filling, documents, seq):
    closed = [[*document, END] for document in documents]
    runs = {tuple(c[a:b]) for c in closed for a in range(len(c)) for b in range(a + 1, len(c) + 1)}
    for tokens, targets, positions in pieces_of(epoch_of(PackedDataset(documents, seq=seq, end_token=END,
                                                                       filling=filling))):  # fmt: skip
        assert tuple(tokens) in runs
        assert positions == list(range(len(tokens)))
        assert targets[:-1] == tokens[1:]
        assert (targets[-1] == IGNORED_TARGET) == (tokens[-1] == END)
        if targets[-1] != IGNORED_TARGET:
            assert (*tokens, targets[-1]) in runs


@pytest.mark.parametrize("filling", FILLINGS)
@settings(max_examples=20, deadline=None)
@given(documents=DOCUMENTS, seq=st.integers(2, 17))
def test_no_row_is_without_a_target(filling, documents, seq):
    """A mean over no targets is not a number."""
    batch = epoch_of(PackedDataset(documents, seq=seq, end_token=END, filling=filling))
    assert ((batch.targets != IGNORED_TARGET).sum(1) > 0).all()


def test_packed_documents_get_the_logits_that_they_get_alone():
    """Block-diagonal attention, computed here: a document's result depends on nothing else in its row."""
    torch.manual_seed(0)
    embedding, place = torch.randn(60, 8, dtype=torch.float64), torch.randn(32, 8, dtype=torch.float64)

    def attend(tokens, documents, positions):
        x = embedding[tokens] + place[positions]
        sees = (documents[:, None] == documents[None, :]) & torch.ones(len(tokens), len(tokens)).tril().bool()
        return (x @ x.T).masked_fill(~sees, -torch.inf).softmax(-1) @ x

    documents = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14]]
    batch = epoch_of(PackedDataset(documents, seq=16, end_token=END))
    together = attend(batch.tokens[0], batch.documents[0], batch.positions[0])
    for number in (1, 2, 3):
        here = batch.documents[0] == number
        length = int(here.sum())
        alone = attend(batch.tokens[0][here], torch.ones(length), torch.arange(length))
        torch.testing.assert_close(together[here], alone, rtol=1e-12, atol=0)


def test_a_batch_is_a_pure_function_of_its_step():
    documents = [[n] * (1 + n % 7) for n in range(1, 60)]
    first, second = (PackedDataset(documents, seq=11, seed=5, end_token=END) for _ in range(2))
    in_order = [first.batch(step, 3) for step in range(20)]
    for step in (19, 0, 7):  # a run that goes on in the middle asks for nothing before
        again = second.batch(step, 3)
        assert torch.equal(again.tokens, in_order[step].tokens)
        assert torch.equal(again.targets, in_order[step].targets)


def test_each_epoch_has_every_row_once_in_another_order():
    data = PackedDataset([[n, n] for n in range(1, 41)], seq=3, seed=1, end_token=END)
    assert data.num_rows == 40
    epochs = [data.batch(epoch, 40).tokens[:, 0].tolist() for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(1, 41))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    other = PackedDataset([[n, n] for n in range(1, 41)], seq=3, seed=2, end_token=END)
    assert other.batch(0, 40).tokens[:, 0].tolist() != epochs[0]


def test_steps_follow_each_other_whatever_the_number_of_rows():
    data = PackedDataset([[n, n] for n in range(1, 8)], seq=3, end_token=END)
    by_three = torch.cat([data.batch(step, 3).tokens for step in range(8)])
    by_four = torch.cat([data.batch(step, 4).tokens for step in range(6)])
    assert torch.equal(by_three, by_four)


def test_a_data_set_smaller_than_a_batch_is_repeated():
    batch = PackedDataset([[1, 2], [3]], seq=2, end_token=END, filling="one-per-row").batch(3, 7)
    assert batch.tokens.shape == (7, 2)
    rows = {tuple(row) for row in batch.tokens.tolist()}
    assert rows == {(1, 2), (3, END)}


def test_best_fit_equals_a_search_through_all_rows():
    rng = np.random.default_rng(0)
    for seq in (7, 16, 33):
        lengths = rng.integers(1, seq + 1, 80).tolist()
        spaces: list[int] = []  # longest first, into the row with the least space that is enough
        for length in sorted(lengths, reverse=True):
            enough = [space for space in spaces if space >= length]
            if enough:
                spaces[spaces.index(min(enough))] -= length
            else:
                spaces.append(seq - length)
        rows = best_fit(lengths, seq)
        assert sorted(seq - sum(lengths[piece] for piece in row) for row in rows) == sorted(spaces)
        assert sorted(piece for row in rows for piece in row) == list(range(80))


def test_best_fit_wastes_less_than_next_fit_and_never_less_than_the_bound():
    lengths = np.random.default_rng(1).integers(1, 60, 500).tolist()
    bound = -(-sum(lengths) // 64)
    assert bound <= len(best_fit(lengths, 64)) <= 1.04 * bound
    assert len(next_fit(lengths, 64)) > 1.2 * bound
    assert len(cut_to_fit(lengths, 64)) <= bound


def test_utilisation_is_the_share_of_positions_that_are_not_padding():
    data = PackedDataset([[1] * n for n in (2, 5, 9, 3)], seq=7, end_token=END)
    assert data.utilisation == (epoch_of(data).documents != PADDING_DOCUMENT).double().mean().item()
    assert data.num_tokens == 2 + 5 + 9 + 3 + 4


def test_a_batch_splits_into_its_rows():
    batch = PackedDataset([[n, n] for n in range(1, 8)], seq=3, end_token=END).batch(0, 5)
    parts = batch.split(2)
    assert [len(part.tokens) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.positions for part in parts]), batch.positions)
    assert sum(part.num_targets for part in parts) == batch.num_targets
    assert batch.to("meta").tokens.device.type == "meta"


def mixture(weights=None, seed=0, **sizes) -> MixtureDataset:
    """Domains of one-token documents, so that a row's first token says which domain and which row of it."""
    domains = {
        name: PackedDataset([[100 * at + n] for n in range(1, size + 1)], seq=2, seed=at, end_token=END)
        for at, (name, size) in enumerate(sizes.items(), start=1)
    }
    return MixtureDataset(domains, weights, seed=seed)


def test_a_mixture_keeps_its_weights_in_every_thousand_rows():
    data = mixture({"a": 6, "b": 3, "c": 1}, a=7, b=50, c=90)
    for block in range(3):
        drawn = data.domains(block, 1000)
        assert [drawn.count(name) for name in "abc"] == [600, 300, 100]
    assert data.weights == {"a": 0.6, "b": 0.3, "c": 0.1}
    assert data.epochs(1000)["a"] == pytest.approx(600 / 7)


def test_rows_of_a_mixture_are_those_of_its_domains_in_their_order():
    data = mixture({"a": 0.5, "b": 0.5}, a=9, b=13)
    first_tokens = torch.cat([data.batch(step, 7).tokens[:, 0] for step in range(300)]).tolist()  # 2,100 rows
    domains = [domain for step in range(300) for domain in data.domains(step, 7)]
    for name in "ab":
        drawn = [token for token, domain in zip(first_tokens, domains) if domain == name]
        alone = data.datasets[name].batch(0, len(drawn)).tokens[:, 0].tolist()
        assert drawn == alone


def test_a_mixture_is_a_pure_function_of_its_step():
    weights = {"a": 1, "b": 2}
    expected = [mixture(weights, a=9, b=13).batch(step, 6).tokens for step in range(200)]
    fresh = mixture(weights, a=9, b=13)
    assert all(torch.equal(fresh.batch(step, 6).tokens, expected[step]) for step in (199, 3, 166))
    other = mixture(weights, seed=1, a=9, b=13)
    assert not torch.equal(other.batch(0, 6).tokens, expected[0])


def test_a_mixture_without_weights_is_in_proportion_to_size():
    data = mixture(a=30, b=10)
    assert data.weights == {"a": 0.75, "b": 0.25}
    assert data.num_tokens == 80
    assert mixture({"a": 1, "b": 0}, a=30, b=10).num_tokens == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": []}, "nothing to train on"),
        ({"documents": [[1], []]}, "document 1 has no tokens"),
        ({"documents": [[1], [-3]]}, "document 1 holds the token id -3"),
        ({"seq": 1}, "seq must be at least 2"),
        ({"seed": -1}, "must not be negative"),
        ({"filling": "worst-fit"}, "filling must be one of best-fit"),
    ],
)
def test_packing_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        PackedDataset(**({"documents": [[1, 2]], "seq": 4, "end_token": END} | arguments))


def test_packing_refuses_what_is_no_list_of_numbers():
    with pytest.raises(TypeError, match="document 0 must be a list of token ids"):
        PackedDataset([[0.5]], seq=4, end_token=END)
    data = PackedDataset([[1]], seq=4, end_token=END)
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        data.batch(-1, 2)
    with pytest.raises(ValueError, match="rows must be positive, got 0"):
        data.batch(0, 0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1}, "weights must name the domains a, b, got a"),
        ({"a": 1, "b": -1}, "must not be negative"),
        ({"a": 0, "b": 0}, "one must be positive"),
        ({"a": 1, "b": 1e-6}, "less than one row of 1000"),
    ],
)
def test_a_mixture_refuses(weights, message):
    with pytest.raises(ValueError, match=message):
        mixture(weights, a=3, b=4)


def test_a_mixture_refuses_data_that_do_not_go_together():
    short, long = (PackedDataset([[1]], seq=seq, end_token=END) for seq in (2, 3))
    with pytest.raises(ValueError, match="must have the same seq"):
        MixtureDataset({"a": short, "b": long})
    with pytest.raises(ValueError, match="datasets is empty"):
        MixtureDataset({})
