"""``smelt bench --decode --kv-cache-dtype``: what rounded caches are held to, and what names them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

import smelt
from smelt.runtime.generation.report import CacheReport
from smelt.tools import cli
from smelt.tools.bench import decode, decode_rounded
from smelt.tools.bench.peers import PeerError
from smelt.tools.models import load_model
from smelt.tools.timing import Timings

pytest.importorskip("transformers")

TINY = "zoo:gpt2:tiny@1x9"
PROMPT = torch.arange(9)[None]
OPTIONS = ("--decode", "--tokens", "4", "--rounds", "1", "--peers", "eager")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def model() -> Any:
    loaded: Any = load_model(TINY).model
    loaded.generation_config.eos_token_id = None
    loaded.generation_config.use_cache = True
    return loaded


def bench(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, ["bench", TINY, *args])
    assert result.exit_code == code, result.output
    return result


def test_rounded_caches_are_measured_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "wait_for_idle", lambda: 0.0)
    monkeypatch.setitem(decode.PEERS, "smelt", decode._eager)  # type: ignore[arg-type]
    file = tmp_path / "found.json"
    compiled: list[Any] = []

    def noting(fast: Any, *rest: Any) -> str:
        compiled.append(fast)
        return decode_rounded.check_numbers(fast, *rest)

    monkeypatch.setattr(decode, "check_numbers", noting)
    text = " ".join(bench(*OPTIONS, "--kv-cache-dtype", "int8", "--json", str(file)).stdout.split())
    assert "smelt's caches in int8" in text
    assert "tokens of eager with caches that round as much" in text
    [found] = json.loads(file.read_text())["decode"]
    assert found["kv_cache_dtype"] == "int8"
    assert found["checked"].startswith("prompt: ")
    assert list(found["summary"]) == ["smelt", decode.PLAIN, "eager"]
    assert compiled[0].report().caches.dtype == "int8"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_the_reference_rounds(model: Any, dtype: torch.dtype) -> None:
    cache = decode_rounded.rounding_cache(model, str(dtype).removeprefix("torch."))
    with torch.no_grad():
        decode._generate(model, PROMPT, 4, past_key_values=cache)
    for keys in (cache.layers[0].keys, cache.layers[1].values):
        assert keys.dtype == torch.float32
        steps = keys if dtype == torch.bfloat16 else keys * 127 / keys.abs().amax(-1, keepdim=True)
        stored = steps.bfloat16().float() if dtype == torch.bfloat16 else steps.round()
        torch.testing.assert_close(steps, stored, rtol=0, atol=1e-4 if dtype == torch.int8 else 0)


class Eager:
    """In place of the compiled model: tokens of PyTorch, with rounded caches and then ``more`` added."""

    fast = None
    more = 0

    def __init__(self, model: Any, prompt: torch.Tensor, threads: int, kv: str) -> None:
        self.model, self.prompt, self.kv = model, prompt, kv

    def __call__(self, tokens: int) -> torch.Tensor:
        cache = decode_rounded.rounding_cache(self.model, self.kv)
        return decode._generate(self.model, self.prompt, tokens, past_key_values=cache) + self.more


class Other(Eager):
    more = 1


def test_other_tokens_are_not_timed(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr(decode, "_Smelt", Other)
    with pytest.raises(PeerError, match="other tokens than eager with caches that are rounded to int8"):
        decode._rounded(model, PROMPT, 1, 4, "int8")


def test_wrong_numbers_are_not_timed(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """The prompt's are held to the contract, then the last token's."""
    wrong = smelt.VerifyError("1 of 1 outputs break the numeric contract")
    calls: list[int] = []

    def fail(fast: Any, ids: torch.Tensor, **rest: Any) -> SimpleNamespace:
        calls.append(ids.shape[1])
        if len(calls) == 2:
            raise wrong
        return SimpleNamespace(worst=None)

    monkeypatch.setattr(decode_rounded, "verify", fail)
    monkeypatch.setattr(Eager, "fast", model)
    monkeypatch.setattr(decode, "check_storage", lambda fast, name: None)
    monkeypatch.setattr(decode, "_Smelt", Eager)
    with pytest.raises(smelt.VerifyError, match="numeric contract"):
        decode._rounded(model, PROMPT, 1, 4, "int8")
    assert calls == [9, 1]


@pytest.mark.parametrize(
    ("caches", "text"),
    [
        (None, "no cache"),
        (CacheReport(0, {}, 0, 0, 0, "int8"), "no cache"),
        (CacheReport(3, {"a window": 1}, 9, 0, 0, "int8"), "not round all caches to int8: a window"),
        (CacheReport(3, {}, 9, 0, 0, ""), "caches are in the model dtype"),
    ],
)
def test_caches_that_are_not_rounded_are_not_timed(caches: CacheReport | None, text: str) -> None:
    fast: Any = SimpleNamespace(report=lambda: SimpleNamespace(caches=caches))
    with pytest.raises(PeerError, match=text):
        decode_rounded.check_storage(fast, "int8")


@pytest.mark.parametrize(("during", "marked"), [(None, False), (0.4, False), (2.0, True)])
def test_ratios_under_load_are_marked(during: float | None, marked: bool) -> None:
    """As those of single calls are; the table of ``--decode`` was not."""
    whole, first = Timings({"smelt": [1.0], "eager": [2.0]}), Timings({"smelt": [0.5], "eager": [1.0]})
    outcome = decode.DecodeOutcome("zoo:gpt2", (1, 9), 4, 2, 0.0, during, whole, first, {})
    console = Console(width=200)
    with console.capture() as written:
        console.print(decode.decode_table(outcome))
    assert ("~2.00" in written.get()) == marked
    assert ("~: others kept more than 0.5 cores busy" in decode.decode_remarks([outcome])) == marked


def test_what_cannot_be_measured_is_named() -> None:
    assert "there are: bfloat16, int8" in bench(*OPTIONS, "--kv-cache-dtype", "fp8", code=1).stderr
    assert "--kv-cache-dtype is for --decode" in bench("--kv-cache-dtype", "int8", code=1).stderr
    assert "128 positions: 9 and 120 generated" in bench("--decode", "--tokens", "120", code=1).stderr
