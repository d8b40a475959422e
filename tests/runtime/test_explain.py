"""The explanation of a compiled model: times, refusals, memory, and their text."""

import json

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.ir.cost import Roofs
from smelt.runtime.explain import Explanation
from smelt.runtime.explain_text import explanation_text
from smelt.runtime.footprint import LiveBytes, eager_peak
from smelt.runtime.module import CompiledModule
from smelt.runtime.report import WIDTH
from smelt.runtime.whynot import UnknownRuleError, rule_named, why_not_of

ROOFS = Roofs(1e9, 1e8, 1e8, 1e-3, 1e9)
X = torch.randn(5, 16)


@pytest.fixture(autouse=True)
def known_roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roofs that need no measuring."""
    monkeypatch.setattr("smelt.runtime.explain.roofs_of", lambda target, cache: ROOFS)


class Block(nn.Module):
    """A product, and a norm that cannot be in its kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.linear(x))
        return y


class Model(nn.Module):
    """Two such layers, each of turned rows, which a product does not compute itself, and what PyTorch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x.flip(0))
        return torch.linalg.eigvalsh(x.T @ x)


@pytest.fixture(scope="module")
def fast() -> CompiledModule:
    fast = smelt.compile(Model().eval())
    fast(X)
    return fast


@pytest.fixture(scope="module")
def measured(fast: CompiledModule) -> Explanation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smelt.runtime.explain.roofs_of", lambda target, cache: ROOFS)
        return fast.explain((X,), measure=True)


def test_every_step_is_explained(fast: CompiledModule) -> None:
    (part,) = fast.explain().parts
    plan = fast.entries[0].executable.plan
    assert len(part.steps) == len(plan.steps)
    assert part.sizes == {"s0": 5}
    linear, norm = part.steps[:2]
    assert (linear.operators, norm.operators) == (("linear",), ("layer_norm",))
    assert linear.module == "layers.0.linear"
    assert linear.flops == 2 * 5 * 16 * 16
    assert linear.intensity == linear.flops / linear.moved.nbytes
    assert linear.measured is linear.share_of_roof is None
    assert part.steps[-1].kind == "torch"
    assert "eigvalsh" in "".join(name for step in part.steps for name in step.operators if step.kind == "torch")


def test_equal_kernels_are_together_in_the_order_of_their_first_call(fast: CompiledModule) -> None:
    (part,) = fast.explain().parts
    together = part.together()
    assert [len(calls) for calls in together.values()][:2] == [2, 2]
    assert sum(map(len, together.values())) == len(part.steps)


def test_an_estimate_is_the_work_or_the_bytes_and_a_launch(fast: CompiledModule) -> None:
    (part,) = fast.explain().parts
    for step in part.steps[:2]:
        moving = step.moved.nbytes / ROOFS.cache_bytes_per_second  # all of it fits the last cache
        assert step.estimated >= moving + ROOFS.launch_seconds
    norm = part.steps[1]
    assert norm.estimated == pytest.approx(norm.flops / ROOFS.scalar_flops + ROOFS.launch_seconds)


def test_refusals_say_what_they_would_have_saved(fast: CompiledModule) -> None:
    (part,) = fast.explain().parts
    by_reason = {group.reason: group for group in part.refused}
    group = by_reason["a matmul and a rows in one kernel"]
    assert len(group.refused) == 2
    nbytes = 5 * 16 * 4
    for one in group.refused:
        assert (one.producer.operator, one.consumer.operator) == ("linear", "layer_norm")
        assert one.nbytes == 2 * nbytes  # nothing else reads it: it need not be written
        assert one.seconds == pytest.approx(2 * nbytes / ROOFS.cache_bytes_per_second + ROOFS.launch_seconds)
    assert {one.producer.module for one in group.refused} == {"layers.0.linear", "layers.1.linear"}
    assert all(one.consumer.source.startswith("test_explain.py:") for one in group.refused)
    assert [g.seconds for g in part.refused] == sorted((g.seconds for g in part.refused), reverse=True)


def test_a_value_that_others_read_too_must_be_written_and_a_launch_counts_once() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.linear(x)
            return y, torch.softmax(y, -1)

    fast = smelt.compile(Reads().eval())
    fast(X)
    (part,) = fast.explain().parts
    (group,) = part.refused
    assert group.nbytes == 5 * 16 * 4


def test_two_values_between_two_kernels_save_one_launch() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.exp()
            return y @ y.sin().T

    fast = smelt.compile(Both().eval())
    fast(X)
    (part,) = fast.explain().parts
    assert len(part.steps) == 2
    ((more, less),) = (group.refused for group in part.refused)
    moving = 2 * 5 * 16 * 4 / ROOFS.cache_bytes_per_second
    assert {more.producer.operator, less.producer.operator} == {"exp", "sin"}
    assert more.seconds == pytest.approx(moving + ROOFS.launch_seconds)
    assert less.seconds == pytest.approx(moving)


def test_what_came_into_one_kernel_by_another_way_was_not_refused(fast: CompiledModule) -> None:
    report = fast.entries[0].executable.fusion
    assert report.refusals
    assert all(report.kernel_of[r.producer] != report.kernel_of[r.consumer] for r in report.refusals)


def test_memory(fast: CompiledModule) -> None:
    (part,) = fast.explain().parts
    memory = part.footprint
    executable = fast.entries[0].executable
    assert memory.arena == executable.arena_bytes(fast.entries[0].sizes or {})
    assert 0 < memory.arena_least <= memory.arena
    assert memory.ordered <= memory.depth_first
    assert memory.peak == memory.arena + memory.results
    assert memory.eager is None


def test_sizes_of_another_call_and_no_call_at_all() -> None:
    fast = smelt.compile(Model().eval())
    with pytest.raises(smelt.CaptureError, match="not captured yet"):
        fast.explain()
    (part,) = fast.explain((torch.randn(7, 16),)).parts
    assert part.sizes == {"s0": 7}
    with pytest.raises(smelt.CaptureError, match="not called yet"):
        fast.explain()
    with pytest.raises(ValueError, match="give the arguments"):
        fast.explain(measure=True)


def test_measured(measured: Explanation) -> None:
    (part,) = measured.parts
    assert part.measured is not None
    assert all(step.measured and 0 < step.measured < 10 for step in part.steps)
    assert all(step.share_of_roof == step.estimated / (step.measured or 1) for step in part.steps)
    assert sum(step.measured or 0 for step in part.steps) < 10 * part.measured + 1
    assert part.footprint.eager is not None
    # the two products and norms of eager, of which two live at once
    assert part.footprint.eager >= 2 * 5 * 16 * 4


def test_measuring_leaves_state_alone() -> None:
    class Counts(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            x.mul_(2)
            return x + self.count

    model, x = Counts().eval(), torch.ones(3)
    fast = smelt.compile(model)
    fast.explain((x,), measure=True)
    assert model.count.tolist() == [0, 0, 0]
    assert x.tolist() == [1, 1, 1]
    assert fast(x).tolist() == [3, 3, 3]


def test_text(measured: Explanation) -> None:
    for text in (str(measured), explanation_text(measured, everything=True)):
        assert all(len(line) <= WIDTH for line in text.splitlines())
        for expected in (
            "roofs",
            "kernels",
            "meas. us",
            "roof",
            "times the least",
            "memory",
            "PyTorch eager",
            "refused",
        ):
            assert expected in text
    assert "e.g. linear (layers." in str(measured)
    assert str(measured).count("layer_norm") < explanation_text(measured, everything=True).count("layer_norm")


def test_data(measured: Explanation) -> None:
    data = json.loads(json.dumps(measured.to_dict()))
    (part,) = data["parts"]
    assert part["traffic"]["ratio"] == pytest.approx(part["traffic"]["moved"] / part["traffic"]["least"])
    assert {"intensity", "share_of_roof", "estimated", "measured"} <= set(part["steps"][0])
    assert part["refused"][0]["seconds"] == pytest.approx(sum(r["seconds"] for r in part["refused"][0]["refused"]))
    assert part["footprint"]["peak"] == part["footprint"]["arena"] + part["footprint"]["results"]


def test_a_split_model_is_explained_part_by_part() -> None:
    class Splits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.exp()
            return y.sin() if y.sum() > 0 else y

    fast = smelt.compile(Splits().eval())
    fast(X)
    assert fast.is_split
    assert len(fast.explain().parts) == len(fast.entries) > 1
    assert "part 2 of 2" in str(fast.explain())


# --- PyTorch's memory -------------------------------------------------------------------------------------------------


def test_the_peak_of_eager() -> None:
    n = 1000 * 4

    def three_at_once(x: Tensor) -> Tensor:
        a = x + 1
        b = a + 1  # a, b
        c = a + b  # a, b, c
        del a, b
        return c + 1  # c and the result

    assert eager_peak(three_at_once, (torch.zeros(1000),), {}) == 3 * n
    assert eager_peak(lambda x: x.view(10, 100).t(), (torch.zeros(1000),), {}) == 0
    assert eager_peak(lambda x: x.add_(1), (torch.zeros(1000),), {}) == 0


def test_weights_and_arguments_are_not_counted_and_stay_as_they_are() -> None:
    x = torch.zeros(4, 16)
    assert eager_peak(nn.Linear(16, 16), (x,), {}) == 4 * 16 * 4
    eager_peak(lambda x: x.add_(1), (x,), {})
    assert x.sum() == 0


def test_live_bytes_fall_when_tensors_go() -> None:
    with LiveBytes([]) as live:
        for _ in range(5):
            torch.ones(100)
    assert live.peak == 400


# --- one rule ---------------------------------------------------------------------------------------------------------


class Norm(nn.Module):
    """A norm that is written out."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(self.axis, keepdim=True) + 1e-6)


def test_why_a_rule_did_not_fire() -> None:
    fast = smelt.compile(nn.Sequential(Norm(1), Norm(-1)).eval())
    fast(torch.randn(2, 3, 4))
    found = why_not_of(fast.entries[0], "rms-norm-of-rsqrt")
    assert found.stage == "recognise"
    (fired,) = found.fired
    assert (fired.operator, fired.module) == ("mul", "1")
    miss = found.misses[0]
    assert miss.place.module == "0"
    assert miss.reason.startswith("dims is (1,), not (-1,), at mean(")
    assert 1 < miss.fitted < miss.operators
    text = str(found)
    assert "rms-norm-of-rsqrt, a rule of the pass recognise, fired once" in text
    assert "test_explain.py:" in text
    assert all(len(line) <= WIDTH for line in text.splitlines())


def test_places_alike_are_counted() -> None:
    fast = smelt.compile(nn.Sequential(*(Norm(1) for _ in range(3))).eval())
    fast(torch.randn(2, 3, 4))
    assert why_not_of(fast.entries[0], "rms-norm-of-rsqrt").misses[0].times == 3


def test_an_unknown_rule() -> None:
    with pytest.raises(UnknownRuleError, match="did you mean rms-norm-of-rsqrt"):
        rule_named("rms-norm-of-rsqr")
    with pytest.raises(UnknownRuleError, match="rope-of-"):
        rule_named("rope")
