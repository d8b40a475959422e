"""The compiled module: called as the model is, captured once for all sizes, recaptured where a guard fails."""

import copy
import errno
import inspect
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import smelt
from smelt.runtime import cache
from smelt.runtime.cache import CacheWarning
from smelt.runtime.module import CompiledModule


class Pair(NamedTuple):
    total: Tensor
    rest: Any


class Mixer(nn.Module):
    """Every kind of argument and result in one small model."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("scale", torch.tensor([2.0]))
        self.config = {"name": "mixer"}

    def forward(
        self, x: Tensor, extra: Tensor | None = None, *, double: bool = False, parts: Any = ()
    ) -> dict[str, Any]:
        """A dict of a tensor, a tuple, a number and None."""
        y = self.linear(x) * self.scale
        if extra is not None:
            y = y + extra
        if double:
            y = y * 2
        for part in parts:
            y = y + part["bias"]
        return {"y": y, "pair": Pair(y.sum(), (x, None, 3)), "rows": x.shape[0], "none": None}

    def describe(self) -> str:
        """A method of the model's own."""
        return f"{self.config['name']} of {self.linear.in_features}"


@pytest.fixture(scope="module")
def model() -> Mixer:
    torch.manual_seed(0)
    return Mixer().eval()


@pytest.fixture(scope="module")
def fast(model: Mixer) -> CompiledModule:
    return smelt.compile(model)


def assert_same(ours: Any, eager: Any) -> None:
    mine, spec = pytree.tree_flatten(ours)
    theirs, expected = pytree.tree_flatten(eager)
    assert spec == expected
    for a, b in zip(mine, theirs, strict=True):
        assert type(a) is type(b)
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b.detach())
            assert a is b or not a.requires_grad
        else:
            assert a == b


def check(fast: Callable[..., Any], model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    with torch.no_grad():
        eager = model(*args, **kwargs)
    assert_same(fast(*args, **kwargs), eager)


def captures(fast: CompiledModule) -> int:
    return len(fast.entries)


# --- calls ------------------------------------------------------------------------------------------------------------


def test_the_result_has_the_models_structure(fast: CompiledModule, model: Mixer) -> None:
    check(fast, model, torch.randn(3, 8))


def test_one_capture_serves_all_sizes(fast: CompiledModule, model: Mixer) -> None:
    check(fast, model, torch.randn(3, 8))
    before = captures(fast)
    for rows in (1, 2, 17, 5):
        check(fast, model, torch.randn(rows, 8))
    assert captures(fast) == before


def test_no_rows_are_a_size_as_well(fast: CompiledModule, model: Mixer) -> None:
    # whether by the same capture or by one of their own
    check(fast, model, torch.randn(0, 8))
    check(fast, model, torch.randn(4, 8))


def test_equal_calls_are_one_however_they_are_written(fast: CompiledModule, model: Mixer) -> None:
    x, extra = torch.randn(4, 8), torch.randn(4, 8)
    check(fast, model, x, extra)
    before = captures(fast)
    for args, kwargs in (
        ((x, extra), {"double": False}),
        ((x,), {"extra": extra}),
        ((), {"extra": extra, "x": x}),
        ((), {"x": x, "parts": (), "extra": extra, "double": False}),
    ):
        check(fast, model, *args, **kwargs)
    assert captures(fast) == before


def test_another_structure_or_constant_is_captured_again(model: Mixer) -> None:
    fast = smelt.compile(model)
    x = torch.randn(4, 8)
    check(fast, model, x)
    check(fast, model, x, double=True)
    check(fast, model, x, parts=[{"bias": torch.ones(8)}, {"bias": torch.ones(4, 8)}])
    check(fast, model, x, torch.ones(4, 8))
    assert captures(fast) == 4
    check(fast, model, x)
    assert captures(fast) == 4
    reasons = fast.report().recaptures
    assert len(reasons) == 3
    assert "double" in reasons[0]


def test_functions_compile(model: Mixer) -> None:
    def softplus(x: Tensor, beta: float = 1.0) -> tuple[Tensor, float]:
        """Smooth relu."""
        return (1 + (x * beta).exp()).log() / beta, beta

    fast = smelt.compile(softplus)
    check(fast, softplus, torch.randn(5))
    check(fast, softplus, torch.randn(2), 1.0)
    assert fast.__doc__ == "Smooth relu."
    assert inspect.signature(fast) == inspect.signature(softplus)
    assert fast.state_dict() == {}
    assert not fast.training


def test_a_compiled_model_compiles(fast: CompiledModule, model: Mixer) -> None:
    assert smelt.compile(fast).original is model


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_what_other_compilers_return() -> None:
    model = nn.Linear(2, 2).eval()
    compiled: Any = torch.compile(model, backend="eager")
    assert smelt.compile(compiled).original is model

    def double(x: Tensor) -> Tensor:
        return x * 2

    compiled = torch.compile(double, backend="eager")
    assert smelt.compile(compiled).original is double
    with pytest.raises(smelt.UnsupportedError, match="TorchScript"):
        smelt.compile(torch.jit.trace(model, torch.ones(1, 2)))


def test_it_runs_within_no_grad_and_inference_mode(fast: CompiledModule, model: Mixer) -> None:
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            check(fast, model, torch.randn(3, 8))


def test_a_first_call_within_inference_mode() -> None:
    model, x = nn.Linear(8, 8).eval(), torch.randn(3, 8)
    fast, expected = smelt.compile(model), model(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), expected)
    torch.testing.assert_close(fast(x), expected)
    with torch.no_grad():
        model.weight.mul_(2.0)
    with torch.inference_mode():
        fast.refresh()
        torch.testing.assert_close(fast(x), model(x))


def test_hooks_on_the_compiled_module_run(model: Mixer) -> None:
    fast = smelt.compile(model)
    seen = []
    fast.register_forward_pre_hook(lambda module, args: seen.append(len(args)))
    fast(torch.randn(3, 8))
    assert seen == [1]


# --- tensors of every kind --------------------------------------------------------------------------------------------


def at_offset(shape: tuple[int, ...], offset: int = 1) -> Tensor:
    """A dense tensor that does not begin at a multiple of 64 bytes."""
    count = int(torch.Size(shape).numel())
    return torch.randn(count + offset)[offset:].view(shape)


TENSORS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: torch.randn(8, 5).T,
    "every other row": lambda: torch.randn(10, 8)[::2],
    "every other column": lambda: torch.randn(5, 16)[:, ::2],
    "flipped": lambda: torch.randn(5, 8).flip(0),
    "expanded": lambda: torch.randn(1, 8).expand(5, 8),
    "expanded scalar": lambda: torch.randn(()).expand(5, 8),
    "unaligned": lambda: at_offset((5, 8)),
    "one row of many": lambda: torch.randn(5, 8)[2:3],
    "no rows": lambda: torch.randn(0, 8),
    "no rows, strided": lambda: torch.randn(8, 0).T,
    "NaN and inf": lambda: torch.tensor([[float("nan"), float("inf"), -float("inf"), 0.0, 1.0, -1.0, 1e30, -0.0]]),
    "parameter": lambda: nn.Parameter(torch.randn(5, 8), requires_grad=False),
    "channels last": lambda: torch.randn(1, 8, 5, 1).to(memory_format=torch.channels_last)[0, :, :, 0].T,
    "imaginary part": lambda: torch.randn(5, 8, dtype=torch.complex64).conj().imag,
}


@pytest.mark.parametrize("kind", TENSORS)
def test_every_kind_of_tensor(fast: CompiledModule, model: Mixer, kind: str) -> None:
    x = TENSORS[kind]()
    with torch.no_grad():
        eager = model(x)["y"]
    torch.testing.assert_close(fast(x)["y"], eager, equal_nan=True)


def test_one_tensor_twice(fast: CompiledModule, model: Mixer) -> None:
    x = torch.randn(4, 8)
    check(fast, model, x, x)
    check(fast, model, x[:2], x[1:3])


def test_a_tensor_without_dims() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return x.exp() + y

    fast = smelt.compile(f)
    check(fast, f, torch.tensor(2.0), torch.tensor(0.5))
    check(fast, f, torch.randn(3)[1], torch.randn(3).sum())
    assert captures(fast) == 1


@pytest.fixture(scope="module")
def accumulate() -> Callable[..., Tensor]:
    def accumulate(total: Tensor, x: Tensor) -> Tensor:
        total.copy_(total + x)
        return total * 2 + x

    return accumulate


@pytest.fixture(scope="module")
def fast_accumulate(accumulate: Callable[..., Tensor]) -> CompiledModule:
    return smelt.compile(accumulate)


@pytest.mark.parametrize("make", [lambda: torch.randn(4, 6), lambda: torch.randn(6, 4).T, lambda: at_offset((4, 6))])
def test_arguments_are_written_to(
    fast_accumulate: CompiledModule, accumulate: Callable[..., Tensor], make: Callable[[], Tensor]
) -> None:
    total, x = make(), torch.randn(4, 6)
    expected = total.clone()
    result = accumulate(expected, x)
    torch.testing.assert_close(fast_accumulate(total, x), result)
    torch.testing.assert_close(total, expected)


def test_an_argument_written_to_that_shares_memory(
    fast_accumulate: CompiledModule, accumulate: Callable[..., Tensor]
) -> None:
    memory = torch.randn(6, 4)
    expected = memory.clone()
    result = accumulate(expected[:4], expected[2:])
    with pytest.warns(UserWarning, match="argument total, which shares memory with x: such calls run in PyTorch"):
        found = fast_accumulate(memory[:4], memory[2:])
    torch.testing.assert_close(found, result)
    torch.testing.assert_close(memory, expected)
    # side by side, and said only once
    fast_accumulate(memory[:3], memory[3:])
    fast_accumulate(memory[:4], memory[2:])


def test_arguments_that_shared_no_memory_are_looked_at_again_where_they_moved(
    accumulate: Callable[..., Tensor],
) -> None:
    fast = smelt.compile(accumulate)
    memory = torch.zeros(128, 16)  # rows of 64 bytes, so that kernels take them as they are
    total, x = memory[:4], memory[64:68]
    x += 1
    for _ in range(3):
        fast(total, x)
    expected = memory.clone()
    result = accumulate(expected[62:66], expected[64:68])
    with pytest.warns(UserWarning, match="shares memory with x"):
        torch.testing.assert_close(fast(memory[62:66], x), result)
    torch.testing.assert_close(memory, expected)


def test_results_are_the_callers_own(fast: CompiledModule) -> None:
    first = fast(torch.ones(3, 8))["y"]
    kept = first.clone()
    fast(torch.zeros(3, 8))
    assert torch.equal(first, kept)


def test_indices_out_of_range_raise_index_error() -> None:
    embedding = nn.Embedding(10, 4).eval()
    fast = smelt.compile(embedding)
    check(fast, embedding, torch.tensor([1, 9]))
    for bad in (10, -1, 2**40):
        with pytest.raises(IndexError):
            fast(torch.tensor([0, bad]))
    check(fast, embedding, torch.tensor([[0, 3]]))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def once(model: Mixer) -> CompiledModule:
    """Captured for one kind of call only, which every refusal is then compared with."""
    fast = smelt.compile(model)
    fast(torch.ones(3, 8))
    return fast


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing a required argument: 'x'"),
        ((torch.ones(3, 8),) * 3, {}, "too many positional arguments"),
        ((torch.ones(3, 8),), {"xs": 1}, "unexpected keyword argument 'xs'"),
        ((torch.ones(3, 8),), {"x": 1}, "multiple values for argument 'x'"),
        (([[1.0] * 8],), {}, "itself refuses these arguments"),
        ((torch.ones(3, 8).numpy(),), {}, r"argument x is a ndarray: pass a tensor, such as torch.from_numpy"),
        ((torch.ones(3, 8, dtype=torch.float64),), {}, "argument x is torch.float64, captured as torch.float32"),
        ((torch.ones(3, 8, dtype=torch.int64),), {}, "argument x is torch.int64"),
        ((torch.ones(3, 7),), {}, "input 'x': dim 1 is 7, the graph takes 8"),
        ((torch.ones(()),), {}, "argument x has 0 dims, captured with 2"),
        ((torch.ones(3, 8), torch.ones(2, 8)), {}, "itself refuses"),
        (("text",), {}, "argument x is str 'text', captured as a tensor"),
        ((torch.ones(3, 8, device="meta"),), {}, "argument x is on the device meta"),
        ((torch.ones(3, 8).to_sparse(),), {}, "argument x has the layout torch.sparse_coo"),
    ],
)
def test_arguments_that_the_model_cannot_take(
    once: CompiledModule, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(smelt.InputError, match=message):
        once(*args, **kwargs)
    assert captures(once) == 1
    once(torch.ones(3, 8))


def test_the_first_call_is_refused_as_well(model: Mixer) -> None:
    with pytest.raises(smelt.InputError, match="Mixer itself refuses these arguments"):
        smelt.compile(model)(torch.ones(3, 7))


@torch.no_grad()
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_recurrent_layer_of_no_steps(kind: Any, batch_first: bool) -> None:
    """PyTorch refuses it; it gave results without steps."""
    fast = smelt.compile(kind(3, 4, batch_first=batch_first).eval(), cache=False)
    empty, no_rows = torch.randn(2, 0, 3), torch.randn(0, 2, 3)
    if not batch_first:
        empty, no_rows = no_rows, empty
    with pytest.raises(smelt.InputError, match="Expected sequence length to be larger than 0"):
        fast(empty)
    assert fast(no_rows)[0].shape == (*no_rows.shape[:2], 4)


def test_names_inside_containers_are_told() -> None:
    fast = smelt.compile(lambda states: states["a"][1] + 1)
    with pytest.raises(smelt.InputError, match=r'argument states\["a"\]\[1\] is on the device meta'):
        fast({"a": [0, torch.ones(2, device="meta")]})


def test_an_argument_that_requires_grad(fast: CompiledModule, model: Mixer) -> None:
    x = torch.randn(3, 8, requires_grad=True)
    with pytest.raises(smelt.InputError, match=r"argument x requires grad.*torch\.no_grad"):
        fast(x)
    with torch.no_grad():
        check(fast, model, x)
    with pytest.raises(smelt.InputError, match="argument extra requires grad"):
        fast(torch.randn(3, 8), x)


def test_training_mode(model: Mixer) -> None:
    training = copy.deepcopy(model).train()
    fast = smelt.compile(training)
    assert fast.training
    with pytest.raises(smelt.UnsupportedError, match=r"call \.eval\(\)"):
        fast(torch.ones(3, 8))
    assert fast.eval() is fast
    check(fast, training, torch.ones(3, 8))
    training.train()
    with pytest.raises(smelt.UnsupportedError, match=r"call \.eval\(\)"):
        fast(torch.ones(3, 8))
    training.eval()
    fast.train()
    assert training.training
    assert training.linear.training


def test_a_part_in_training_mode(model: Mixer) -> None:
    part = copy.deepcopy(model)
    part.linear.train()
    with pytest.raises(smelt.UnsupportedError, match="its part linear"):
        smelt.compile(part)(torch.ones(3, 8))


def test_autocast(fast: CompiledModule) -> None:
    with torch.autocast("cpu"), pytest.raises(smelt.UnsupportedError, match="bfloat16"):
        fast(torch.ones(3, 8))


def test_a_model_without_values() -> None:
    with torch.device("meta"):
        model = Mixer().eval()
    with pytest.raises(smelt.UnsupportedError, match=r"is on the device meta.*load its weights"):
        smelt.compile(model)(torch.ones(3, 8))


def test_too_many_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smelt.runtime.captures.MAX_CAPTURES", 2)
    fast = smelt.compile(lambda x, k=0: x + k)
    for k in (1, 2):
        fast(torch.ones(2), k)
    with pytest.raises(smelt.CaptureError, match=r"captured 2 times.*argument k is int 3, captured as int 2"):
        fast(torch.ones(2), 3)
    fast(torch.ones(2), 1)


@pytest.mark.parametrize(
    "options",
    [
        {"fallback": "maybe"},
        {"dynamic": "yes"},
        {"dynamic": {"x": 3}},
        {"dynamic": {"x": {0: 3}}},
        {"dynamic": {"x": {"batch": 0}}},
        {"dynamic": {"x": {0: ""}}},
        {"threads": 0},
    ],
)
def test_options_that_do_not_exist(model: Mixer, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        smelt.compile(model, **options)


@pytest.mark.parametrize("dynamic", [{"nothing": {0: "batch"}}, {"x": {5: "batch"}}])
def test_sizes_that_are_named_of_nothing(model: Mixer, dynamic: Any) -> None:
    """They must not send the model to PyTorch, which nobody would notice but by its speed."""
    with pytest.raises(smelt.InputError, match="dynamic"):
        smelt.compile(model, dynamic=dynamic)(torch.randn(3, 8))


def test_what_cannot_be_called() -> None:
    with pytest.raises(TypeError, match="model is a int"):
        smelt.compile(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the class Mixer: give an instance"):
        smelt.compile(Mixer)


# --- without the kernel cache -----------------------------------------------------------------------------------------


def test_a_cache_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Mixer) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMELT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    x = torch.randn(3, 8)
    with pytest.warns(CacheWarning, match="cannot be made or read") as said:
        results = [smelt.compile(model)(x)["y"] for _ in range(2)]
    assert len(said) == 1
    for result in results:
        torch.testing.assert_close(result, model(x)["y"].detach())


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Mixer) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("SMELT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("smelt.runtime.cache.tempfile.mkstemp", full)
    x = torch.randn(3, 8)
    with pytest.warns(CacheWarning, match="No space left on device") as said:
        results = [smelt.compile(model)(x)["y"] for _ in range(2)]
    assert len(said) == 1
    torch.testing.assert_close(results[1], model(x)["y"].detach())


def test_no_linker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Mixer) -> None:
    monkeypatch.setenv("SMELT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "find_linker", lambda: None)
    monkeypatch.setattr(cache, "_said", set())
    x = torch.randn(3, 8)
    with pytest.warns(CacheWarning, match="install gcc or clang") as said:
        results = [smelt.compile(model)(x)["y"] for _ in range(2)]
    assert len(said) == 1
    torch.testing.assert_close(results[1], model(x)["y"].detach())


# --- being the model --------------------------------------------------------------------------------------------------


def test_attributes_are_the_models(fast: CompiledModule, model: Mixer) -> None:
    assert fast.original is model
    assert fast.config is model.config
    assert fast.describe() == "mixer of 8"
    assert fast.linear is model.linear
    assert "describe" in dir(fast)
    with pytest.raises(AttributeError, match="nothing"):
        _ = fast.nothing


def test_the_signature_is_the_models(fast: CompiledModule, model: Mixer) -> None:
    assert inspect.signature(fast) == inspect.signature(model.forward)
    assert inspect.signature(fast.forward) == inspect.signature(model.forward)


def test_weights_have_the_models_names(fast: CompiledModule, model: Mixer) -> None:
    assert isinstance(fast, nn.Module)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert [name for name, _ in fast.named_parameters()] == ["linear.weight", "linear.bias"]
    assert [name for name, _ in fast.named_buffers()] == ["scale"]
    assert [name for name, _ in fast.named_modules()] == ["", "linear"]
    assert "Mixer" in repr(fast)


def test_changed_weights_count_after_refresh(model: Mixer) -> None:
    model = copy.deepcopy(model)
    fast = smelt.compile(model)
    x = torch.randn(3, 8)
    check(fast, model, x)
    with torch.no_grad():
        model.linear.weight.mul_(2)
    fast.refresh()
    check(fast, model, x)
    model.linear.weight = nn.Parameter(torch.randn(8, 8))
    model.linear.bias.data = torch.randn(8)
    fast.refresh()
    check(fast, model, x)
    assert captures(fast) == 1


def test_loading_weights_refreshes(model: Mixer) -> None:
    fast = smelt.compile(copy.deepcopy(model))
    fast(torch.ones(3, 8))
    state = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    fast.load_state_dict(state)
    check(fast, fast.original, torch.ones(3, 8))


def test_conversion_captures_again(model: Mixer) -> None:
    fast = smelt.compile(copy.deepcopy(model))
    fast(torch.ones(3, 8))
    assert fast.double() is fast
    assert captures(fast) == 0
    assert fast.original.linear.weight.dtype == torch.float64  # type: ignore[attr-defined]
    check(fast, fast.original, torch.ones(3, 8, dtype=torch.float64))


def test_a_weight_of_another_shape_captures_again() -> None:
    model = nn.Linear(4, 4).eval()
    fast = smelt.compile(model)
    check(fast, model, torch.ones(2, 4))
    model.weight, model.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    fast.refresh()
    check(fast, model, torch.ones(2, 4))


def test_deep_copies_are_their_own(model: Mixer) -> None:
    fast = smelt.compile(model)
    fast(torch.ones(3, 8))
    twin = copy.deepcopy(fast)
    assert isinstance(twin, CompiledModule)
    assert captures(twin) == 0
    assert twin.linear.weight is not model.linear.weight
    with torch.no_grad():
        twin.linear.weight.zero_()
    check(twin, twin.original, torch.ones(3, 8))
    check(fast, model, torch.ones(3, 8))


def test_saving_and_loading() -> None:
    fast = smelt.compile(nn.Linear(4, 4).eval())
    fast(torch.ones(2, 4))
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert captures(loaded) == 0
    torch.testing.assert_close(loaded(torch.ones(2, 4)), fast(torch.ones(2, 4)))


def test_several_threads_at_once(fast: CompiledModule, model: Mixer) -> None:
    inputs = [torch.randn(n, 8) for n in range(1, 9)]
    with torch.no_grad():
        expected = [model(x)["y"] for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            if not torch.allclose(fast(inputs[number])["y"], expected[number], atol=1e-5):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_several_threads_capture_once(model: Mixer) -> None:
    fast = smelt.compile(model)
    threads = [threading.Thread(target=fast, args=(torch.randn(n, 8),)) for n in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert captures(fast) == 1


def test_another_thread_may_export(model: Mixer, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch says of all threads then that they are traced."""
    fast, x, found = smelt.compile(model), torch.randn(3, 8), []
    expected = fast(x)
    monkeypatch.setattr(Mixer, "forward", None)  # the model itself is not called

    class Exported(torch.nn.Module):
        def forward(self, y: torch.Tensor) -> torch.Tensor:
            thread = threading.Thread(target=lambda: found.append(fast(x)))
            thread.start()
            thread.join()
            return y + 1

    torch.export.export(Exported(), (torch.ones(3),), strict=False)
    torch.testing.assert_close(found, [expected], rtol=0, atol=0)


# --- what it did ------------------------------------------------------------------------------------------------------


def test_nothing_can_be_shown_before_the_first_call(model: Mixer) -> None:
    fast = smelt.compile(model)
    for ask in (fast.ir, fast.report):
        with pytest.raises(smelt.CaptureError, match="call it once"):
            ask()


def test_the_ir_at_every_stage(fast: CompiledModule) -> None:
    fast(torch.ones(3, 8))
    assert fast.ir() == fast.ir(stage="final")
    assert "fused(" in fast.ir(after="fuse")
    assert "linear(" in fast.ir(stage="captured")
    assert "matmul(" in fast.ir(stage="kernels")
    assert "T.prim_func" in fast.ir(stage="code")


def test_a_stage_that_does_not_exist(fast: CompiledModule) -> None:
    fast(torch.ones(3, 8))
    with pytest.raises(ValueError, match=r"no stage 'optimise'; there are: captured, .*, final, kernels, code"):
        fast.ir(after="optimise")
    with pytest.raises(ValueError, match="not both"):
        fast.ir("fuse", stage="final")
