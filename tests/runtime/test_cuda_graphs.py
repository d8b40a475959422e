"""When calls become CUDA graphs, and what a graph may rely on: sizes, addresses, memory. On a device that is played."""

from __future__ import annotations

import gc
import json
import re
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.cuda import graphs

from .fake_gpu import TARGET, FakeGpu, executable_of, playing


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with playing() as played:
        yield played


class Two(nn.Module):
    """Two products, which are two kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))  # type: ignore[no-any-return]


class Cached(nn.Module):
    """Writes a row of a cache that the caller gives, and reads all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, cache: Tensor, slot: Tensor) -> Tensor:
        cache.index_copy_(0, slot, self.first(x))
        return self.last(cache).sum(0)  # type: ignore[no-any-return]


def check(fast: smelt.CompiledModule, *args: Tensor) -> Tensor:
    """The result of a call, which is eager's."""
    found: Tensor = fast(*args)
    torch.testing.assert_close(found, fast.original(*args))
    return found


def modes(log: list[str]) -> list[str]:
    """Replays, captures and launches outside of replays, from a device's log."""
    found: list[str] = []
    for entry in log:
        if entry in ("replay", "capture"):
            found.append(entry)
        elif entry.startswith("launch") and (not found or found[-1] != "replay"):
            found.append("launch")
    return found


# --- when ---------------------------------------------------------------------------------------------------------


def test_sizes_that_come_again_are_captured_and_replayed(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET)
    x = torch.randn(3, 8)
    for _ in range(2):
        check(fast, x)
        assert modes(gpu.taken()) == ["launch", "launch"]  # the first compiles what no capture may compile
    check(fast, x)
    assert modes(gpu.taken()) == ["capture", "replay"]
    check(fast, x)
    assert modes(gpu.taken()) == ["replay"]
    check(fast, torch.randn(2, 8))
    assert modes(gpu.taken()) == ["launch", "launch"]
    report = executable_of(fast).graph_report()
    assert (report.held, report.replays, report.launched, report.captured) == (1, 2, 3, 1)
    assert (report.graphs, report.kernels, report.beside) == (1, 2, 0)
    assert report.nbytes == 1000 + 3 * 8 * 4  # of the driver, and the copy of the result


def test_graphs_are_not_held_where_that_is_asked_for(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET, graphs=0)
    for _ in range(4):
        check(fast, torch.randn(3, 8))
    assert "capture" not in gpu.log
    for wrong in (-1, True, 1.5):
        with pytest.raises(ValueError, match="graphs is"):
            smelt.compile(Two().eval(), target=TARGET, graphs=wrong)  # type: ignore[arg-type]


def test_of_too_many_graphs_the_one_that_was_not_used_longest_goes(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET, graphs=2)
    calls = {rows: torch.randn(rows, 8) for rows in (7, 3, 5)}
    for rows in (7, 3, 5):
        for _ in range(2):
            check(fast, calls[rows])
    for rows in (7, 3, 7, 5):  # 3 is the one that goes
        check(fast, calls[rows])
    gpu.taken()
    check(fast, calls[7])
    check(fast, calls[5])
    assert modes(gpu.taken()) == ["replay", "replay"]
    report = executable_of(fast).graph_report()
    assert (report.held, report.evicted, report.captured) == (2, 1, 3)
    check(fast, calls[3])
    log = gpu.taken()
    assert modes(log) == ["capture", "replay"]
    assert "synchronize" in log  # nothing is dropped that may still run


def test_empty_tensors_are_never_captured(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET)
    for _ in range(4):
        assert check(fast, torch.randn(0, 8)).shape == (0, 8)
    assert "capture" not in gpu.log


def test_where_capturing_fails_kernels_are_launched(gpu: FakeGpu) -> None:
    gpu.broken = True
    fast = smelt.compile(Two().eval(), target=TARGET)
    for _ in range(4):
        check(fast, torch.randn(3, 8))
    assert gpu.log.count("capture") == 1
    report = fast.report()
    assert "not captured for s0 = 3: RuntimeError: operation not permitted" in str(report)
    fast.refresh()
    gpu.broken = False
    for _ in range(2):
        check(fast, torch.randn(3, 8))
    assert gpu.log[-3:] == ["replay", "launch k0_linear_relu", "launch k1_linear"]


# --- arguments ----------------------------------------------------------------------------------------------------


def test_an_argument_that_lies_where_it_lay_is_not_copied(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET)
    x = torch.randn(3, 8)
    for _ in range(4):
        x.normal_()
        check(fast, x)
    assert executable_of(fast).graph_report().copied == ()


def test_an_argument_that_moves_is_copied_from_then_on(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET)
    x, others = torch.randn(3, 8), [torch.randn(3, 8) for _ in range(4)]
    for _ in range(3):
        check(fast, x)
    gpu.taken()
    check(fast, others[0])
    assert modes(gpu.taken()) == ["capture", "replay"]
    for other in others[1:]:
        check(fast, other)
    assert modes(gpu.taken()) == ["replay"] * 3
    report = executable_of(fast).graph_report()
    assert (report.copied, report.captured, report.dropped) == (("x",), 2, 1)


def test_an_argument_that_moved_before_is_copied_at_once(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET)
    for x in [torch.randn(3, 8) for _ in range(5)]:
        check(fast, x)
    report = executable_of(fast).graph_report()
    assert (report.copied, report.captured) == (("x",), 1)


def test_what_is_written_is_never_copied_and_other_memory_is_another_graph(gpu: FakeGpu) -> None:
    model = Cached().eval()
    fast = smelt.compile(model, target=TARGET)
    caches, eager = [torch.zeros(6, 8) for _ in range(2)], [torch.zeros(6, 8) for _ in range(2)]
    for step in range(4):
        for mine, theirs in zip(caches, eager, strict=True):
            x, slot = torch.randn(1, 8), torch.tensor([step])
            torch.testing.assert_close(fast(x, mine, slot), model(x, theirs, slot))
            torch.testing.assert_close(mine, theirs)
    report = executable_of(fast).graph_report()
    assert (report.held, report.replays, report.launched) == (2, 4, 4)
    assert set(report.copied) == {"x", "slot"}


def test_an_argument_of_the_cpu_without_dims_is_copied(gpu: FakeGpu) -> None:
    class Scaled(Two):
        def forward(self, x: Tensor, factor: Tensor) -> Tensor:
            return super().forward(x * factor)

    fast = smelt.compile(Scaled().eval(), target=TARGET)
    x = torch.randn(3, 8)
    for factor in (1.0, 2.0, 3.0, 4.0):
        check(fast, x, torch.tensor(factor))
    report = executable_of(fast).graph_report()
    assert (report.copied, report.captured, report.replays) == (("factor",), 1, 2)


def test_the_callers_tensors_are_not_kept(gpu: FakeGpu) -> None:
    """A graph has addresses, and checks them: it keeps nobody's memory alive."""
    fast = smelt.compile(Two().eval(), target=TARGET)
    x = torch.randn(3, 8)
    for _ in range(3):
        check(fast, x)
    (graph,) = executable_of(fast)._graphs.values()
    assert graph.baked
    assert all(tensor is not x for tensor in graph.slots)


# --- results ------------------------------------------------------------------------------------------------------


def test_results_are_the_callers_to_keep(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET)
    given = [torch.randn(3, 8) for _ in range(6)]
    kept = [fast(x) for x in given]
    for x, found in zip(given, kept, strict=True):
        torch.testing.assert_close(found, fast.original(x))
        found.zero_()  # nor does writing to them change what follows
    check(fast, given[0])


def test_results_that_are_views_arguments_or_one_value(gpu: FakeGpu) -> None:
    class Many(Two):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = super().forward(x)
            return y, y.t(), y, x, self.first.weight, y[1]

    model = Many().eval()
    fast = smelt.compile(model, target=TARGET)
    for _ in range(5):
        x = torch.randn(3, 8)
        found, expected = fast(x), model(x)
        torch.testing.assert_close(found, expected)
        places = [t.untyped_storage().data_ptr() for t in found]
        assert len(set(places)) == len(places)
        assert found[3] is x
        assert [t.stride() for t in found[:1]] == [t.stride() for t in expected[:1]]


def test_a_large_result_is_written_where_the_caller_gets_it(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "LARGE", 3 * 8 * 4)

    class Three(Two):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x))

    fast = smelt.compile(Three().eval(), target=TARGET)
    x = torch.randn(3, 8)
    for _ in range(3):
        check(fast, x)
    gpu.taken()
    first, second = check(fast, x), check(fast, x)
    assert first.data_ptr() != second.data_ptr()
    replayed = [f"launch {name}" for name in ("k0_linear_relu", "k1_linear", "k0_linear_relu")]
    assert gpu.taken()[:5] == ["replay", *replayed, "launch k1_linear"]
    report = executable_of(fast).graph_report()
    assert (report.graphs, report.kernels, report.beside, report.nbytes) == (1, 3, 1, 1000)


# --- PyTorch between graphs ---------------------------------------------------------------------------------------


def test_steps_of_pytorch_run_between_graphs(gpu: FakeGpu) -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Two(), Two()

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.linalg.matrix_exp(self.one(x)))  # type: ignore[no-any-return]

    fast = smelt.compile(Between().eval(), target=TARGET)
    for _ in range(5):
        check(fast, torch.randn(8, 8))
    report = executable_of(fast).graph_report()
    assert (report.graphs, report.kernels, report.beside) == (2, 4, 1)
    assert gpu.log.count("capture") == 2
    assert modes(gpu.log)[-2:] == ["replay", "replay"]


def test_state_that_kernels_do_not_write_in_place(gpu: FakeGpu) -> None:
    class Counting(Two):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))
            self.register_buffer("last_row", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            self.count += 1
            self.last_row.copy_(y[-1])
            return y * self.count

    torch.manual_seed(0)
    model, eager = Counting().eval(), Counting().eval()
    eager.load_state_dict(model.state_dict())
    fast = smelt.compile(model, target=TARGET)
    for step in range(6):
        x = torch.randn(3, 8)
        torch.testing.assert_close(fast(x), eager(x))
        torch.testing.assert_close(model.last_row, eager.last_row)
        assert model.count.item() == step + 1
    assert executable_of(fast).graph_report().replays


# --- memory and weights -------------------------------------------------------------------------------------------


def test_addresses_do_not_change_under_a_graph(gpu: FakeGpu) -> None:
    """A larger call makes a larger arena: graphs of the old one are dropped, and captured again in the new one."""
    fast = smelt.compile(Two().eval(), target=TARGET)
    small, large = torch.randn(3, 8), torch.randn(300, 8)
    for _ in range(3):
        check(fast, small)
    gpu.taken()
    check(fast, large)
    assert "synchronize" in gpu.taken()
    check(fast, small)
    assert modes(gpu.taken()) == ["capture", "replay"]
    for _ in range(3):
        check(fast, large)
        check(fast, small)
    report = executable_of(fast).graph_report()
    assert (report.held, report.captured, report.dropped) == (2, 3, 1)
    assert report.arena_bytes == executable_of(fast).arena_bytes(fast.entries[0].match(*_call(fast, large)))


def _call(fast: smelt.CompiledModule, x: Tensor) -> tuple[object, list[Tensor]]:
    call = fast._reader.read((x,), {})
    return call.spec, call.leaves


def test_weights_that_were_replaced_are_taken_by_refresh_and_those_changed_in_place_at_once(gpu: FakeGpu) -> None:
    model = Two().eval()
    fast = smelt.compile(model, target=TARGET)
    x = torch.randn(3, 8)
    for _ in range(3):
        check(fast, x)
    with torch.no_grad():
        model.last.weight.mul_(2)
    check(fast, x)
    model.last.weight = nn.Parameter(torch.randn(8, 16))
    fast.refresh()
    gpu.taken()
    check(fast, x)
    assert modes(gpu.taken()) == ["capture", "replay"]
    fast.load_state_dict({name: torch.randn_like(t) for name, t in model.state_dict().items()})
    check(fast, x)


def test_weights_that_are_computed_from_others_are_shared_by_captures(gpu: FakeGpu) -> None:
    class Joined(nn.Module):
        """Two products of one input, which are made one."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x).relu() @ self.k(x).transpose(-1, -2)  # type: ignore[no-any-return]

    fast = smelt.compile(Joined().eval(), target=TARGET)
    for x in (torch.randn(4, 64), torch.randn(2, 4, 64)):
        check(fast, x)
    one, other = executable_of(fast, 0), executable_of(fast, 1)
    derived = [
        {e._packed[b.position].data_ptr() for b in e.plan.buffers if b.name in e.derived and len(b.type.shape) == 2}
        for e in (one, other)
    ]
    assert derived[0]
    assert derived[0] == derived[1]


def test_out_of_memory_says_what_was_needed_and_leaks_nothing(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET)
    x = torch.randn(3, 8)
    for _ in range(3):
        check(fast, x)
    before = gpu.live
    gpu.room = before + 4000
    large = torch.randn(1000, 8)
    with pytest.raises(
        smelt.OutOfMemoryError, match=r"64,000 bytes were needed, .* bytes of .* bytes were free"
    ) as told:
        fast(large)
    assert isinstance(told.value, torch.OutOfMemoryError)
    assert told.value.needed == 64_000
    assert told.value.free is not None
    assert told.value.free < 64_000
    assert gpu.released
    del told
    gc.collect()
    assert gpu.live <= before
    check(fast, x)  # the arena is made again
    gpu.room = None
    check(fast, large)


def test_out_of_memory_for_results_gives_up_graphs_first(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET)
    rows = [torch.randn(n, 8) for n in (64, 60, 56, 52)]
    for x in rows:
        for _ in range(3):
            check(fast, x)
    held = executable_of(fast).graph_report().held
    gpu.room = gpu.live + 1000  # less than a result
    check(fast, rows[0])
    assert held == 4
    assert executable_of(fast).graph_report().held < 4


def test_a_first_call_without_memory_is_not_the_models_fault(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET)
    gpu.room = 100
    for _ in range(2):
        with pytest.raises(smelt.OutOfMemoryError):
            fast(torch.randn(1000, 8))
    gpu.room = None
    check(fast, torch.randn(1000, 8))
    assert len(fast.entries) == 1


# --- streams, threads, models -------------------------------------------------------------------------------------


def test_a_call_on_another_stream_waits_for_those_before(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET)
    x = torch.randn(3, 8)
    for _ in range(3):
        check(fast, x)
    assert not any("waits" in entry for entry in gpu.taken()[1:])
    gpu.now = "stream 1"
    check(fast, x)
    waits, used, *rest = gpu.taken()
    assert waits == "stream 1 waits for stream 0"
    assert used.endswith("used on stream 1")
    assert "replay" in rest
    check(fast, x)
    assert not any("waits" in entry for entry in gpu.taken())


def test_a_call_within_a_capture_of_the_callers_is_refused(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET)
    check(fast, torch.randn(3, 8))
    gpu.busy = True
    with pytest.raises(smelt.UnsupportedError, match="outside of torch"):
        fast(torch.randn(3, 8))


def test_threads_and_models() -> None:
    with playing() as one:
        first = smelt.compile(Two().eval(), target=TARGET)
        first(torch.randn(2, 8))
    with playing() as other:
        second = smelt.compile(Cached().eval(), target=TARGET)
        second(torch.randn(1, 8), torch.zeros(6, 8), torch.tensor([0]))
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for step in range(20):
                draw = torch.Generator().manual_seed(100 * seed + step)
                check(first, torch.randn(1 + step % 3, 8, generator=draw))
                cache, x = torch.randn(6, 8, generator=draw), torch.randn(1, 8, generator=draw)
                check(second, x, cache, torch.tensor([step % 6]))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert executable_of(first).graph_report().replays
    assert one.live
    assert other.live


def test_memory_is_made_outside_of_inference_mode(gpu: FakeGpu) -> None:
    model = Cached().eval()
    fast = smelt.compile(model, target=TARGET)
    cache = torch.zeros(6, 8)
    with torch.inference_mode():
        for step in range(3):
            fast(torch.randn(1, 8), cache, torch.tensor([step]))
    x = torch.randn(1, 8)
    with torch.no_grad():
        result = fast(x, cache, torch.tensor([3]))
    assert not result.is_inference()
    result.add_(1)


# --- indices out of range -----------------------------------------------------------------------------------------


class Looked(nn.Module):
    """An embedding and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(11, 8), nn.Linear(8, 8)

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        return self.last(self.last(self.table(tokens)).relu()) * scale  # type: ignore[no-any-return]


GOOD, BAD, SCALE = torch.tensor([1, 2, 3]), torch.tensor([1, 99, 3]), torch.ones(8)


def looked(gpu: FakeGpu) -> smelt.CompiledModule:
    fast = smelt.compile(Looked().eval(), target=TARGET)
    for _ in range(3):
        check(fast, GOOD, SCALE)
    return fast


def test_a_launched_call_raises_itself(gpu: FakeGpu) -> None:
    fast = smelt.compile(Looked().eval(), target=TARGET)
    with pytest.raises(IndexError, match="index out of range"):
        fast(BAD, SCALE)
    check(fast, GOOD, SCALE)


def test_a_replay_raises_in_the_next_call_and_its_results_are_nan(gpu: FakeGpu) -> None:
    fast = looked(gpu)
    assert fast(BAD, SCALE).isnan().all()
    with pytest.raises(IndexError, match="in an earlier call, the results of which are NaN"):
        fast(GOOD, SCALE)
    check(fast, GOOD, SCALE)
    fast.synchronize()


def test_nobody_waits_for_the_gpu_to_look(gpu: FakeGpu) -> None:
    fast = looked(gpu)
    gpu.late = True
    assert fast(BAD, SCALE).isnan().all()
    gpu.taken()
    assert fast(GOOD, SCALE).isnan().all()  # nobody knows yet, and nobody may take this for a result
    assert "synchronize" not in gpu.taken()
    gpu.late = False
    with pytest.raises(IndexError):
        fast(GOOD, SCALE)
    check(fast, GOOD, SCALE)


def test_synchronize_waits_and_raises(gpu: FakeGpu) -> None:
    fast = looked(gpu)
    gpu.late = True
    fast(BAD, SCALE)
    with pytest.raises(IndexError):
        fast.synchronize()
    fast.synchronize()
    check(fast, GOOD, SCALE)


def test_an_earlier_error_is_raised_once_by_a_call_that_waits(gpu: FakeGpu) -> None:
    fast = looked(gpu)
    gpu.late = True
    fast(BAD, SCALE)
    with pytest.raises(IndexError, match="in an earlier call"):
        fast(torch.tensor([4, 5]), SCALE)  # of other sizes, so that it is launched
    gpu.late = False
    check(fast, GOOD, SCALE)
    check(fast, torch.tensor([4, 5]), SCALE)


def test_an_error_is_raised_in_the_thread_that_made_it(gpu: FakeGpu) -> None:
    fast = looked(gpu)
    turn, found = threading.Event(), []

    def other() -> None:
        fast(BAD, SCALE)
        found.append("called")
        turn.wait()
        try:
            fast(GOOD, SCALE)
        except IndexError as error:
            found.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    while not found:
        pass
    gpu.late = True
    check(fast, GOOD, SCALE)
    check(fast, GOOD, SCALE)
    turn.set()
    thread.join()
    assert "in an earlier call" in found[1]


def test_results_that_cannot_show_it_are_waited_for(gpu: FakeGpu) -> None:
    class Flags(Looked):
        def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
            return super().forward(tokens, scale) > 0

    fast = smelt.compile(Flags().eval(), target=TARGET)
    for _ in range(3):
        fast(GOOD, SCALE)
    assert executable_of(fast).graph_report().replays
    with pytest.raises(IndexError) as told:
        fast(BAD, SCALE)
    assert "earlier" not in str(told.value)


def test_integers_are_the_lowest(gpu: FakeGpu) -> None:
    class Best(Looked):
        def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
            return super().forward(tokens, scale).argmax(-1)

    fast = smelt.compile(Best().eval(), target=TARGET)
    for _ in range(3):
        check(fast, GOOD, SCALE)
    assert fast(BAD, SCALE).tolist() == [torch.iinfo(torch.int64).min] * 3
    with pytest.raises(IndexError):
        fast(GOOD, SCALE)


# --- the report ---------------------------------------------------------------------------------------------------


def test_the_report_as_text(gpu: FakeGpu, golden: Callable[[str, str], None]) -> None:
    model = Cached().eval()
    fast = smelt.compile(model, target=TARGET)
    cache, x = torch.zeros(6, 8), torch.randn(1, 8)
    for step in range(5):
        fast(x, cache, torch.tensor([step]))
    text = str(fast.report())
    golden("cuda-report.txt", re.sub(r"(?<= )\d+\.\d\d(?= s:|,|;)", "0.00", text))
    data = json.loads(json.dumps(fast.report().to_dict()))
    assert data["captures"][0]["graphs"]["replays"] == 3


def test_code_and_kernels_are_shown(gpu: FakeGpu) -> None:
    fast = smelt.compile(Two().eval(), target=TARGET)
    fast(torch.randn(3, 8))
    assert "@triton.jit" in fast.ir(stage="code")
    assert "# gpu_matmul(" in fast.ir(stage="kernels")
