"""``smelt bench --decode``: how fast models generate, as users generate, with their caches; all in one interleaved run.

Each peer continues one prompt greedily by the same number of tokens, and must choose the tokens that eager chooses.
A round times one token and all of them: the first one takes prefill and set-up, the others are steps of decoding.
With ``--kv-cache-dtype`` smelt's caches are rounded, and it is held to what ``decode_rounded.py`` says; smelt without
that takes part as ``PLAIN``.
"""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from ...runtime.compile import compile
from ..console import busy, counted
from ..env import facts
from ..errors import ModelError
from ..models import load_model
from ..timing import LoadClock, Timings, interleave, wait_for_idle
from ..zoo import ZOO
from .decode_onnx import onnx_generate
from .decode_rounded import check_kv_cache_dtype, check_numbers, check_storage, rounding_cache
from .outcome import HEAVY, HEAVY_REMARK, MARK
from .peers import SMELT, PeerError, first_line

PLAIN = "smelt, caches not rounded"
Generate = Callable[[int], Tensor]  # how many tokens -> all tokens [B, prompt + new]


@dataclass(frozen=True)
class DecodeOutcome:
    """What was measured of one model. Seconds are of a whole call of ``generate``.

    Attributes:
        inputs: batch and tokens of the prompt.
        tokens: how many were generated.
        whole, first: for each peer and round, the time for all tokens and for one.
        failed: the peers that cannot run the model, and why.
        copied: bytes of caches that smelt copied, all calls together.
        kv_cache_dtype: what smelt's caches are rounded to, "" for the model's dtype.
        checked: how smelt's numbers compare where its caches are rounded.
    """

    model: str
    inputs: tuple[int, int]
    tokens: int
    threads: int
    load: float | None
    load_during: float | None
    whole: Timings
    first: Timings
    failed: Mapping[str, str]
    copied: int = 0
    kv_cache_dtype: str = ""
    checked: str = ""

    @property
    def loaded(self) -> bool:
        """Whether others were so busy that ratios say little."""
        return max(self.load or 0.0, self.load_during or 0.0) > HEAVY

    def step(self, name: str) -> float:
        """Seconds for one token after the first: the median over rounds."""
        return statistics.median(self.steps(name))

    def steps(self, name: str) -> list[float]:
        """The same of each round."""
        pairs = zip(self.whole.seconds[name], self.first.seconds[name], strict=True)
        return [(whole - first) / (self.tokens - 1) for whole, first in pairs]

    def ratio(self, name: str) -> float:
        """How many times as long as smelt's a peer's step takes: the median of the ratios within rounds."""
        pairs = zip(self.steps(name), self.steps(SMELT), strict=True)
        return statistics.median(a / b for a, b in pairs)

    def to_dict(self) -> dict[str, Any]:
        """The outcome as data for JSON."""
        names = self.whole.seconds
        summary = {n: {"step": self.step(n), "first": self.first.median(n), "ratio": self.ratio(n)} for n in names}
        return asdict(self) | {"summary": summary}


def bench_decode(
    specs: Sequence[str], names: Sequence[str], threads: int, rounds: int, tokens: int, kv_cache_dtype: str = ""
) -> list[DecodeOutcome]:
    """Measure models; ``specs`` are names of the zoo, ``gpt2`` or ``zoo:gpt2@1x128``.

    Raises:
        ModelError: a model does not generate, or there is no such peer or dtype of caches.
        PeerError: smelt chooses other tokens than eager, with caches that are rounded as much, or did not round some.
        VerifyError: caches are rounded, and a number is not that of the model with such caches.
    """
    check_kv_cache_dtype(kv_cache_dtype)
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise ModelError(f"there is no peer {unknown[0]!r} for --decode; there are: {', '.join(PEERS)}")
    if tokens < 2:
        raise ModelError("--tokens must be 2 or more: the first token is measured apart")
    return [_measure(spec, names, threads, rounds, tokens, kv_cache_dtype) for spec in specs]


def _measure(spec: str, names: Sequence[str], threads: int, rounds: int, tokens: int, kv: str) -> DecodeOutcome:
    full = spec if ":" in spec or spec.partition("@")[0] not in ZOO else f"zoo:{spec}"
    loaded = load_model(full)
    model: Any = loaded.model
    prompt = loaded.kwargs.get("input_ids")
    if not hasattr(model, "generate") or not isinstance(prompt, Tensor):
        raise ModelError(f"{spec} does not generate: --decode is for models of transformers that do")
    most = getattr(model.config, "max_position_embeddings", None)
    if isinstance(most, int) and prompt.shape[1] + tokens > most:
        raise ModelError(f"{spec} has {most} positions: {prompt.shape[1]} and {tokens} generated are too many")
    model.generation_config.eos_token_id = None  # random weights end where they like
    model.generation_config.use_cache = True
    torch.set_num_threads(threads)
    ready, failed = _ready(names, model, prompt, threads, tokens)
    checked = ""
    if kv:
        rounded, checked = _rounded(model, prompt, threads, tokens, kv)
        ready = {SMELT: rounded, PLAIN: ready.pop(SMELT)} | ready
    with busy("waiting for the machine to be idle"):
        load = wait_for_idle()
    clock = LoadClock()
    whole = {name: (lambda run=run: run(tokens)) for name, run in ready.items()}
    one = {f"{name} first": (lambda run=run: run(1)) for name, run in ready.items()}
    with counted(f"timing {spec}", rounds) as progress, torch.no_grad():
        found = interleave(whole | one, rounds, turn_seconds=0.0, progress=progress)
    return DecodeOutcome(
        full,
        (prompt.shape[0], prompt.shape[1]),
        tokens,
        threads,
        load,
        clock.load(),
        Timings({name: found.seconds[name] for name in ready}),
        Timings({name: found.seconds[f"{name} first"] for name in ready}),
        failed,
        getattr(ready[SMELT], "copied", lambda: 0)(),
        kv,
        checked,
    )


def _rounded(model: Any, prompt: Tensor, threads: int, tokens: int, kv: str) -> tuple[Generate, str]:
    """smelt with rounded caches, held to PyTorch with such caches, and how its numbers compare."""
    with busy(f"preparing {SMELT} with caches in {kv}"), torch.no_grad():
        run = _Smelt(model, prompt, threads, kv)
        found = run(tokens)
        if not torch.equal(found, _generate(model, prompt, tokens, past_key_values=rounding_cache(model, kv))):
            raise PeerError(f"smelt chooses other tokens than eager with caches that are rounded to {kv}")
        check_storage(run.fast, kv)
        return run, check_numbers(run.fast, prompt, found)


def _ready(
    names: Sequence[str], model: Any, prompt: Tensor, threads: int, tokens: int
) -> tuple[dict[str, Generate], dict[str, str]]:
    """Every peer, compiled, run and held to eager's tokens; and those that cannot be, with the reason."""
    ready: dict[str, Generate] = {}
    failed: dict[str, str] = {}
    with torch.no_grad():
        expected = PEERS["eager"](model, prompt, threads)(tokens)
        for name in names:
            with busy(f"preparing {name}"):
                try:
                    run = PEERS[name](model, prompt, threads)
                    found = run(tokens)
                except Exception as error:  # whatever an exporter or a compiler of others raises
                    if name == SMELT:
                        raise
                    failed[name] = f"{name} cannot run this model: {first_line(error)}"
                    continue
            if torch.equal(found, expected):
                ready[name] = run
            elif name == SMELT:
                raise PeerError("smelt chooses other tokens than eager")
            else:
                failed[name] = f"{name} chooses other tokens than eager"
    return ready, failed


# --- peers ------------------------------------------------------------------------------------------------------------


class _Smelt:
    """The compiled model, with the cache that it takes by default, rounded to ``kv`` if that is given."""

    def __init__(self, model: Any, prompt: Tensor, threads: int, kv: Any = "") -> None:
        self.fast: Any = compile(model, threads=threads, kv_cache_dtype=kv or None)
        self._prompt = prompt

    def __call__(self, tokens: int) -> Tensor:
        return _generate(self.fast, self._prompt, tokens)

    def copied(self) -> int:
        """Bytes of caches that were copied."""
        caches = self.fast.report().caches
        return 0 if caches is None else caches.copied


def _eager(model: Any, prompt: Tensor, threads: int) -> Generate:
    return lambda tokens: _generate(model, prompt, tokens)


def _inductor(model: Any, prompt: Tensor, threads: int) -> Generate:
    """The static cache that transformers compiles for; its length is that of the longest call."""
    from transformers import CompileConfig

    how = CompileConfig(backend="inductor", mode="default", fullgraph=False)
    how._compile_all_devices = True
    return lambda tokens: _generate(model, prompt, tokens, cache_implementation="static", compile_config=how)


def _generate(model: Any, prompt: Tensor, tokens: int, **how: Any) -> Tensor:
    mask = torch.ones_like(prompt)
    found: Tensor = model.generate(input_ids=prompt, attention_mask=mask, max_new_tokens=tokens, do_sample=False, **how)
    return found


PEERS: Mapping[str, Callable[[Any, Tensor, int], Generate]] = {
    SMELT: _Smelt,
    "eager": _eager,
    "inductor": _inductor,
    "onnxruntime": onnx_generate,
}


# --- showing ----------------------------------------------------------------------------------------------------------


def decode_table(outcome: DecodeOutcome) -> Table:
    """The outcome as a table, one line for each peer."""
    made = Table(box=None, pad_edge=False)
    made.add_column("")
    for column in ("tokens/s", "ms/token", "first token ms", "x smelt"):
        made.add_column(column, justify="right")
    for name in outcome.whole.seconds:
        step = outcome.step(name)
        cells = (f"{outcome.inputs[0] / step:.1f}", f"{step * 1e3:.2f}", f"{outcome.first.median(name) * 1e3:.1f}")
        made.add_row(name, *cells, f"{MARK if outcome.loaded else ''}{outcome.ratio(name):.2f}")
    for name in outcome.failed:
        made.add_row(name, "-")
    return made


def decode_heading(outcome: DecodeOutcome) -> str:
    """What was timed."""
    batch, prompt = outcome.inputs
    rounded = f", smelt's caches in {outcome.kv_cache_dtype}" if outcome.kv_cache_dtype else ""
    return (
        f"{outcome.model}, greedy, batch {batch}, {prompt} tokens given, {outcome.tokens} generated, "
        f"{outcome.threads} threads each{rounded}"
    )


def decode_remarks(outcomes: Sequence[DecodeOutcome]) -> str:
    """How to read the tables."""
    rounds = len(next(iter(outcomes[0].whole.seconds.values())))
    loads = [x for o in outcomes for x in (o.load, o.load_during) if x is not None]
    load = f"others kept up to {max(loads):.1f} cores busy" if loads else "at an unknown load"
    lines = [
        f"{rounds} rounds in turns, {load}. {_chosen(outcomes[0])} ms/token: of generate after the first token, "
        "medians of rounds; x smelt: the median of the ratios within rounds.",
        *([HEAVY_REMARK] if any(o.loaded for o in outcomes) else ()),
        *(f"{o.model}: held to PyTorch with rounded caches; {o.checked}" for o in outcomes if o.checked),
        *(f"{o.model}: bytes of caches that smelt copied, in all calls: {o.copied:,}" for o in outcomes),
        *(f"{o.model}: {why}" for o in outcomes for why in o.failed.values()),
    ]
    return "\n".join(lines)


def _chosen(outcome: DecodeOutcome) -> str:
    """Whose tokens everyone chose."""
    if not outcome.kv_cache_dtype:
        return "All chose eager's tokens."
    return (
        f"smelt's caches are rounded to {outcome.kv_cache_dtype}: it chose the tokens of eager with caches that round "
        "as much, the others those of eager."
    )


def decode_record(outcomes: Sequence[DecodeOutcome]) -> dict[str, Any]:
    """Everything as data for JSON."""
    told = {group: values for group, values in facts().items() if group in ("versions", "machine", "target")}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "decode": [outcome.to_dict() for outcome in outcomes],
        "environment": told,
    }
