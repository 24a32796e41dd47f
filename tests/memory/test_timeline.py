"""A timeline counts what tensors hold, to the byte, and says what it was."""

import gc
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cme295lab.memory import MemoryTimeline
from cme295lab.memory.measurement.timeline import running_timelines
from cme295lab.transformer import DecoderLM, ModelConfig
from tests.memory.oracle import allocated_bytes, bytes_of

MIB = 2**20
CONFIG = ModelConfig(
    name="small", vocab_size=96, num_layers=2, dim=24, num_heads=3, mlp_dim=40, max_seq=16, tied_head=True
)


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def test_every_byte_of_a_two_layer_perceptron() -> None:
    """Worked by hand: batch 5; 8 -> 16 -> 4; fp32; loss = mean of squares; Adam, tensor by tensor."""
    model, x = perceptron(), torch.randn(5, 8)
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    weights = 4 * (16 * 8 + 16 + 4 * 16 + 4)
    assert weights == 848
    with MemoryTimeline(model=model, optimizer=optimizer) as m:
        assert m.by_class() == {"weight": weights}
        loss = model(x).square().mean()
        # saved: the hidden layer after ReLU (5 x 16), once, and the output (5 x 4), for the square
        assert m.by_class() == {"weight": weights, "activation": 320 + 80, "input": 160, "temporary": 4}
        loss.backward()
        assert m.by_class() == {"weight": weights, "gradient": weights, "input": 160, "temporary": 4}
        optimizer.step()
        states = 2 * weights + 4 * 4  # two moments, and a step counter for each of four tensors
        assert m.by_class() == {"optimizer state": states, "weight": 848, "gradient": 848, "input": 160, "temporary": 4}
        optimizer.zero_grad()
    assert m.live_bytes == states + weights + 160 + 4
    # The peak is in Adam, at the largest weight (512 bytes): two temporaries of its size, with everything else alive.
    assert m.peak == {"optimizer state": states, "temporary": 2 * 512 + 4, "weight": 848, "gradient": 848, "input": 160}
    assert m.peak_bytes == sum(m.peak.values()) == 4596
    assert m.events[m.peak_event].phase == "optimizer step"
    assert m.events[m.peak_event].record.operator == "aten.div.Tensor"


def test_peak_in_backward_is_told_by_class_as_of_that_moment() -> None:
    model, x = nn.Linear(8, 16, bias=False), torch.randn(64, 8)
    with MemoryTimeline(model=model) as m:
        model(x).exp().sum().backward()
    # exp saves its result (64 x 16); the peak is exp's derivative, before the saved result goes
    assert m.peak == {"activation": 4096, "temporary": 4096 + 4 + 4, "input": 2048, "weight": 512}
    assert m.events[m.peak_event].phase == "backward"


def test_weights_gradients_and_states_of_a_language_model_are_its_parameters() -> None:
    model = DecoderLM(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(CONFIG.vocab_size, (3, 7))
    weights = 4 * CONFIG.num_parameters
    num_tensors = len(list(model.parameters()))
    with MemoryTimeline(model=model, optimizer=optimizer) as m:
        for _ in range(2):
            model.loss(tokens, tokens).backward()
            assert m.by_class()["gradient"] == m.by_class()["weight"] == weights
            optimizer.step()
            assert m.by_class()["optimizer state"] == 2 * weights + 4 * num_tensors
            optimizer.zero_grad()
            assert "gradient" not in m.by_class()
    with MemoryTimeline(model=model, optimizer=optimizer) as later:  # states that were there before
        assert later.by_class() == {"optimizer state": 2 * weights + 4 * num_tensors, "weight": weights}


def test_gradients_that_add_up_stay_the_same_storage() -> None:
    model, x = nn.Linear(6, 3), torch.randn(2, 6)
    model(x).sum().backward()
    with MemoryTimeline(model=model) as m:
        model(x).sum().backward()
        assert m.by_class()["gradient"] == 4 * (18 + 3)
    assert sum(r.class_name == "gradient" for r in m.records) == 2


def test_without_a_model_parameters_gradients_and_states_are_known_all_the_same() -> None:
    model, x = perceptron(), torch.randn(5, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with MemoryTimeline() as m:
        model(x).sum().backward()
        optimizer.step()
    assert m.by_class() == {"weight": 848, "gradient": 848, "optimizer state": 848, "input": 160}


def test_a_name_found_later_holds_from_the_first_moment() -> None:
    x = torch.randn(4, requires_grad=True)
    with MemoryTimeline() as m:
        y = x.neg()
        z = y.sin()  # keeps y, which was temporary until now
        assert m.by_class() == {"activation": 16, "temporary": 16, "input": 16}
    born = next(n for n, event in enumerate(m.events) if event.record.operator == "aten.neg.default")
    assert m.composition(born) == {"input": 16, "activation": 16}
    assert z.shape == (4,)


def test_a_strong_name_changes_at_its_moment_only() -> None:
    with MemoryTimeline() as m:
        x = torch.zeros(100)
        m.mark(x, "bucket")
        before = len(m.events) - 1
        m.mark({"again": [x]}, "gathered weight")
    assert m.composition(before) == {"bucket": 400}
    assert m.by_class() == {"gathered weight": 400}
    assert m.curve() == {"bucket": [400, 0], "gathered weight": [0, 400]}


def test_marked_storages_are_not_renamed() -> None:
    model, x = nn.Linear(3, 2, bias=False), torch.ones(1, 3)
    flat = torch.zeros(6)
    with MemoryTimeline(model=model) as m:
        m.mark(flat, "flat gradients")
        model.weight.grad = flat.view(2, 3)
        model(x).sum().backward()
        assert m.by_class()["flat gradients"] == 24
        assert "gradient" not in m.by_class()


def test_curve_sums_to_the_live_bytes_at_every_event() -> None:
    model, x = perceptron(), torch.randn(5, 8)
    with MemoryTimeline(model=model) as m:
        model(x).sum().backward()
    curve = m.curve()
    assert [sum(values) for values in zip(*curve.values(), strict=True)] == [event.live_bytes for event in m.events]
    assert max(event.live_bytes for event in m.events) == m.peak_bytes == m.peak_bytes_of()
    assert m.peak_bytes_of(["weight"]) == 848
    assert m.peak_bytes_of(without=["weight"]) == m.peak_bytes - 848
    for event in (0, len(m.events) // 2, m.peak_event):
        assert m.composition(event) == {name: line[event] for name, line in curve.items() if line[event]}


def test_module_line_and_operator_of_each_storage() -> None:
    model = DecoderLM(CONFIG)
    tokens = torch.randint(CONFIG.vocab_size, (2, 5))
    with MemoryTimeline(model=model) as m:
        loss = model.loss(tokens, tokens)
        loss.backward()
    silu = next(r for r in m.records if r.operator == "aten.silu.default" and r.module.startswith("layers.1"))
    assert silu.module == "layers.1.mlp"
    assert silu.source is not None
    assert silu.source.function == "forward"
    assert silu.source.file.endswith("transformer/layers.py")
    assert any(line.file == __file__ for line in silu.stack)
    assert (silu.phase, silu.death_phase) == ("forward", "backward")
    backward = next(r for r in m.records if r.operator == "aten.silu_backward.default")
    assert backward.module == "layers.1.mlp"  # of the forward that it is the derivative of; the last layer comes first
    names = {r.name for r in m.records if r.class_name == "gradient"}
    assert names == {name for name, _ in model.named_parameters()}


def test_phase_can_be_named_by_hand() -> None:
    with MemoryTimeline() as m:
        with m.phase("evaluation"):
            torch.zeros(3)
        torch.zeros(3)
    assert [event.phase for event in m.events] == ["evaluation", "evaluation", "other", "other"]


# ---- exact through whatever happens to storages


def test_views_share_a_storage_and_in_place_operators_make_none() -> None:
    with MemoryTimeline() as m:
        x = torch.zeros(6, 4)
        views = [x[1:], x.T, x.view(24), x.expand(3, 6, 4), *x.split(2), x.detach(), x.data]
        x.add_(1).relu_()
        x[2] = 7
        torch.add(x, 1, out=x)
        assert m.live_bytes == 96
        del x
        assert m.live_bytes == 96
        del views
        assert m.live_bytes == 0


def test_storages_that_change_their_size() -> None:
    with MemoryTimeline() as m:
        x = torch.zeros(10)
        x.untyped_storage().resize_(0)
        assert m.live_bytes == 0
        x.untyped_storage().resize_(80)
        assert m.live_bytes == 80
        y = torch.zeros(2)
        y.resize_(50)
        assert m.live_bytes == 80 + 200
        torch.cat([torch.zeros(30), torch.zeros(40)], out=y.resize_(0))  # keeps its bytes, and then they don't do
        assert m.live_bytes == 80 + 280
    assert [e.after_bytes - e.before_bytes for e in m.events if e.kind == "resize"] == [-40, 80, 192, 80]


def test_storages_that_are_swapped() -> None:
    parameter = nn.Parameter(torch.zeros(10))
    with MemoryTimeline() as m:
        parameter.data = torch.zeros(25)
        assert m.live_bytes == 100
        (parameter * 1).sum().backward()
        assert m.by_class() == {"weight": 100, "gradient": 100}
        x = torch.zeros(1)
        x.set_(parameter.data.untyped_storage())
        assert m.live_bytes == 200


def test_freed_by_the_garbage_collector_is_freed() -> None:
    class Ring:
        def __init__(self) -> None:
            self.me, self.tensor = self, torch.zeros(1000)

    gc.collect()
    with MemoryTimeline() as m:
        Ring()
        assert m.live_bytes == 4000
        gc.collect()
        assert m.live_bytes == 0


def test_what_was_there_before_counts_when_it_is_first_read() -> None:
    x, unused = torch.zeros(10), torch.zeros(99)
    with MemoryTimeline() as m:
        y = x + 1
        assert m.by_class() in ({"input": 40, "temporary": 40}, {"temporary": 40, "input": 40})
    assert unused.shape[0] + y.shape[0] == 109


def test_sparse_gradients_count_indices_and_values() -> None:
    table = nn.Embedding(50, 3, sparse=True)
    with MemoryTimeline(model=table) as m:
        table(torch.tensor([4, 4, 7])).sum().backward()
        indices, values = table.weight.grad._indices(), table.weight.grad._values()
        assert m.by_class()["gradient"] == bytes_of([indices, values]) == 3 * 8 + 9 * 4


def test_tied_weights_count_once() -> None:
    model = DecoderLM(CONFIG)
    assert model.head.weight is model.embedding.weight
    with MemoryTimeline(model=model) as m:
        assert m.live_bytes == bytes_of(model.parameters()) == 4 * CONFIG.num_parameters


def test_scalars_and_empty_tensors() -> None:
    with MemoryTimeline() as m:
        tensors = [torch.tensor(3.0), torch.zeros(0, 5), torch.zeros(()), torch.ones(3, 0, 2).sum()]
        assert m.live_bytes == bytes_of(tensors) == 12


def test_meta_tensors_hold_nothing() -> None:
    with MemoryTimeline() as m:
        nn.Linear(1000, 1000, device="meta")
    assert m.peak_bytes == 0


# ---- against independent counts


def large_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, look: Callable[[], None]) -> None:
    for _ in range(2):
        loss = model(x).square().mean()
        look()
        loss.backward()
        look()
        optimizer.step()
        look()
        optimizer.zero_grad()
        look()
        del loss


def test_live_bytes_follow_the_c_library() -> None:
    """Blocks of a MiB and more; the rest of the process moves by a few kB."""
    model = nn.Sequential(nn.Linear(512, 1024), nn.GELU(), nn.LayerNorm(1024), nn.Linear(1024, 512), nn.Softmax(-1))
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(600, 512)
    large_step(model, optimizer, x, lambda: None)
    optimizer.state.clear()
    gc.collect()
    theirs, ours = [allocated_bytes()], [0]
    with MemoryTimeline(model=model, optimizer=optimizer) as m:
        ours[0] = m.live_bytes + 4 * x.numel()

        def look() -> None:
            theirs.append(allocated_bytes())
            ours.append(m.live_bytes)

        large_step(model, optimizer, x, look)
    growth = [(a - theirs[0], b - ours[0]) for a, b in zip(theirs, ours, strict=True)]
    assert max(b for _, b in growth) > 12 * MIB
    assert all(abs(a - b) < 0.25 * MIB for a, b in growth), growth


def test_peak_is_that_of_torchs_own_tracker() -> None:
    from torch.distributed._tools.mem_tracker import MemTracker

    model = DecoderLM(CONFIG, attention="flash")
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    tokens = torch.randint(CONFIG.vocab_size, (3, 9))

    def step() -> None:
        model.loss(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    theirs = MemTracker()
    theirs.track_external(model, optimizer, tokens)
    with theirs:
        step()
    with MemoryTimeline(model=model, optimizer=optimizer) as ours:
        step()
    peak = theirs.get_tracker_snapshot("peak")[torch.device("cpu")]
    assert ours.peak_bytes == peak["Total"]


# ---- how it is used


def test_exception_in_the_block_leaves_nothing_behind() -> None:
    hooks = torch._C._autograd._push_saved_tensors_default_hooks
    resize = torch.UntypedStorage.resize_
    model = perceptron()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), MemoryTimeline(model=model) as m:
        model(torch.zeros(2, 3))
    assert torch.UntypedStorage.resize_ is resize
    assert torch._C._autograd._push_saved_tensors_default_hooks is hooks
    assert running_timelines() == []
    assert m.by_class()["weight"] == 848
    events = len(m.events)
    model(torch.zeros(2, 8)).sum().backward()
    assert len(m.events) == events
    with MemoryTimeline(model=model) as later:  # the phase of a step that failed is not the next one's
        torch.zeros(1)
    assert later.events[-1].phase == "other"


def test_timelines_may_be_nested_and_see_the_same() -> None:
    with MemoryTimeline() as outer:
        a = torch.zeros(10)
        with MemoryTimeline() as inner:
            assert running_timelines() == [outer, inner]
            b = a + torch.zeros(10)
            b.untyped_storage().resize_(400)
            assert inner.live_bytes == outer.live_bytes == 440
        b.untyped_storage().resize_(0)
        assert (inner.live_bytes, outer.live_bytes) == (440, 40)


def test_threads_have_timelines_of_their_own() -> None:
    """Those of other threads are not seen, in whatever order they come and go."""
    at_work, done = threading.Event(), threading.Event()
    results: list[int] = []

    def other() -> None:
        with MemoryTimeline() as theirs:
            x = torch.zeros(1000)
            at_work.set()
            done.wait(10)
            x.untyped_storage().resize_(8000)
            results.append(theirs.live_bytes)

    original = torch.UntypedStorage.resize_
    thread = threading.Thread(target=other)
    with MemoryTimeline() as ours:
        thread.start()
        at_work.wait(10)
        y = torch.zeros(5)
        assert ours.live_bytes == 20
    done.set()
    thread.join()
    assert results == [8000]
    assert torch.UntypedStorage.resize_ is original
    assert y.shape == (5,)


def test_peak_can_be_sought_anew() -> None:
    with MemoryTimeline() as m:
        torch.zeros(1000)
        x = torch.zeros(10)
        m.reset_peak()
        assert m.peak == {"temporary": 40}
        y = x + 1
        del y
    assert m.peak_bytes == 80
    assert m.peak == {"temporary": 80}


def test_of_equal_peaks_the_first_counts() -> None:
    with MemoryTimeline() as m:
        torch.zeros(10)
        torch.ones(10)
    assert m.events[m.peak_event].record.operator == "aten.zeros.default"


def test_only_a_device_that_is_asked_for_is_followed() -> None:
    with MemoryTimeline(device="cuda") as m:
        torch.zeros(1000)
    assert m.peak_bytes == 0
    with MemoryTimeline(device=torch.device("cpu")) as m:
        torch.zeros(1000)
    assert m.peak_bytes == 4000


def test_bad_input_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module or None, got dict"):
        MemoryTimeline(model={})
    with pytest.raises(TypeError, match="optimizer must have `param_groups` and `state`"):
        MemoryTimeline(optimizer=nn.Linear(1, 1))
    with pytest.raises(ValueError, match="device must be 'cpu', 'cuda'"):
        MemoryTimeline(device="tpu")
    with MemoryTimeline() as m:
        with pytest.raises(TypeError, match="tensors must hold tensors only, got 3"):
            m.mark([torch.zeros(1), 3], "x")
        with pytest.raises(ValueError, match="class_name"):
            m.mark(torch.zeros(1), "")
    with pytest.raises(RuntimeError, match="make a new one"), m:
        pass
    with pytest.raises(ValueError, match="event must be one of"):
        m.composition(10**6)


def test_empty_timeline_has_answers() -> None:
    with MemoryTimeline() as m:
        pass
    assert (m.peak_bytes, m.live_bytes, m.peak, m.by_class(), m.curve()) == (0, 0, {}, {}, {})
    assert "no tensor" in str(m)
