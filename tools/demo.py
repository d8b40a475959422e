"""``smelt demo``: semantic search with a pretrained model, compiled and not, and what happened, on one screen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..runtime.compile import compile
from ..runtime.module import CompiledModule
from ..runtime.report import quantity
from ..runtime.target import usable_cores
from ..runtime.verify import verify
from .console import busy, counted, emit_json, out
from .corpus import QUERIES, SENTENCES
from .search import Batch, SentenceEncoder, batches_of, embed, load_encoder, rank
from .timing import IDLE_SHARE, Timings, interleave, wait_for_idle

BATCH = 16
IDLE_SECONDS = 5.0
# Views that PyTorch does not declare as such.
_COMPUTE_NOTHING = (torch.ops.aten._unsafe_view.default, torch.ops.aten.lift_fresh.default)
SHOWN = 3


@dataclass(frozen=True)
class Hit:
    """A sentence found: its place in the corpus and its similarity to the query."""

    sentence: int
    score: float


@dataclass(frozen=True)
class Outcome:
    """What the demo found. Times are in seconds.

    Attributes:
        hits: the best ones for each query.
        same_ranking: whether every query ranks all sentences as eager does.
        max_error: the largest difference of a component of a vector from eager's.
        verified: the numeric contract on the first batch, in a line.
        compile_seconds: from the first call to its result, and of which stages it was made.
        kernels, calls: how many kernels there are, and how often one forward calls them.
        operators: how many operators one forward of eager runs, views not counted.
        layers: how many layers the model has.
        batch: the sizes of the batch that was timed.
        load: how many cores others kept busy before the timing.
    """

    model: str
    target: str
    threads: int
    hits: list[list[Hit]]
    same_ranking: bool
    max_error: float
    verified: str
    captures: int
    compile_seconds: float
    stages: dict[str, float]
    cache: str | None
    kernels: int
    calls: int
    operators: int
    layers: int
    work: int | None
    fallbacks: list[str]
    batch: list[int]
    timings: Timings
    load: float | None


def demo(name: str | None, threads: int | None, rounds: int, as_json: bool) -> None:
    """Run the demo and print what happened.

    Raises:
        SmeltError: the model cannot be loaded, captured or verified.
    """
    with busy(f"loading {name or 'all-MiniLM-L6-v2'}"):
        encoder, tokenizer, shown = load_encoder(name)
    before = torch.get_num_threads()
    count = threads or usable_cores()
    torch.set_num_threads(count)
    try:
        outcome = search(encoder, tokenizer, shown, count, rounds)
    finally:
        torch.set_num_threads(before)
    if as_json:
        summary = {name: outcome.timings.median(name) for name in outcome.timings.seconds}
        emit_json(asdict(outcome) | {"median": summary})
        return
    console = out()
    console.print(f"[bold]{shown}[/bold] on {outcome.target}: {len(SENTENCES)} sentences, {len(QUERIES)} queries\n")
    console.print(hits_table(outcome))
    console.print()
    console.print(facts_table(outcome))


def search(encoder: SentenceEncoder, tokenizer: Any, shown: str, threads: int, rounds: int) -> Outcome:
    """Search with the model compiled and in eager PyTorch, and compare."""
    batches = batches_of(tokenizer, SENTENCES, BATCH)
    queries = batches_of(tokenizer, QUERIES, len(QUERIES))
    fast = compile(encoder, threads=threads)
    with busy("compiling"):
        start = time.perf_counter()
        embed(fast, batches[:1])
        compile_seconds = time.perf_counter() - start
    with busy("searching"):
        ours, eager = ((embed(run, batches), embed(run, queries)) for run in (fast, encoder))
        verified = verify(fast, **batches[0])
    scores, places = rank(ours[1], ours[0])
    widest = max(batches, key=lambda batch: batch["input_ids"].numel())
    with busy("waiting for the machine to be idle"):
        load = wait_for_idle(IDLE_SECONDS)
    with counted("timing", rounds) as progress:
        timings = time_batch(fast, encoder, widest, rounds, progress)
    report = fast.report()
    first = report.captures[0]
    return Outcome(
        model=shown,
        target=report.target,
        threads=threads,
        hits=[_hits(*row) for row in zip(scores, places, strict=True)],
        same_ranking=torch.equal(places, rank(eager[1], eager[0])[1]),
        max_error=max(float((mine - theirs).abs().max()) for mine, theirs in zip(ours, eager, strict=True)),
        verified=str(verified.worst),
        captures=len(report.captures),
        compile_seconds=compile_seconds,
        stages=dict(first.seconds),
        cache=first.cache,
        kernels=sum(len(capture.kernels) for capture in report.captures),
        calls=sum(capture.calls for capture in report.captures),
        operators=count_operators(encoder, widest),
        layers=int(getattr(encoder.transformer.config, "num_hidden_layers", 1)),
        work=report.flops,
        fallbacks=[text for capture in report.captures for text in capture.fallbacks],
        batch=list(widest["input_ids"].shape),
        timings=timings,
        load=load,
    )


def _hits(scores: Tensor, places: Tensor) -> list[Hit]:
    return [Hit(int(place), float(score)) for score, place in zip(scores[:SHOWN], places[:SHOWN], strict=True)]


def time_batch(fast: CompiledModule, encoder: SentenceEncoder, batch: Batch, rounds: int, progress: Any) -> Timings:
    """Both on one batch, in turns."""
    with torch.no_grad():
        runners = {"smelt": lambda: fast(**batch), "eager": lambda: encoder(**batch)}
        return interleave(runners, rounds, progress=progress)


def count_operators(encoder: SentenceEncoder, batch: Batch) -> int:
    """How many operators one forward of eager runs. Views are left out: they compute nothing."""
    with torch.no_grad(), OperatorCount() as count:
        encoder(**batch)
    return int(count.total)


class OperatorCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that PyTorch runs, views left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Count an operator and run it."""
        self.total += not (func.is_view or func in _COMPUTE_NOTHING)
        return func(*args, **(kwargs or {}))


# --- the screen -------------------------------------------------------------------------------------------------------


def hits_table(outcome: Outcome) -> Table:
    """The best sentences for each query."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(justify="right", style="dim")
    made.add_column(no_wrap=True, overflow="ellipsis")
    for query, hits in zip(QUERIES, outcome.hits, strict=True):
        made.add_row("", f"[bold]{query}[/bold]")
        for hit in hits:
            made.add_row(f"{hit.score:.3f}", SENTENCES[hit.sentence])
    return made


def facts_table(outcome: Outcome) -> Table:
    """What happened, line by line."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    same = "the same as eager's for every query" if outcome.same_ranking else "[red]not eager's[/red]"
    made.add_row("ranking", f"{same}, {len(SENTENCES)} places each")
    made.add_row("error", f"at most {outcome.max_error:.1e} in any component of a vector of length 1")
    made.add_row("verified", outcome.verified)
    layers = max(outcome.layers, 1)
    made.add_row(
        "kernels",
        f"{outcome.calls} calls of {outcome.kernels} kernels, {outcome.calls / layers:.1f} a layer; eager runs "
        f"{outcome.operators} operators, {outcome.operators / layers:.1f} a layer (views not counted)",
    )
    made.add_row("fallbacks", "; ".join(outcome.fallbacks) or "none")
    made.add_row("compile", _compile_text(outcome))
    made.add_row("time", _time_text(outcome))
    return made


def _compile_text(outcome: Outcome) -> str:
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in outcome.stages.items() if seconds >= 0.05)
    kept = {"hit": "kernels from the cache", "miss": "kernels compiled and kept", None: "no cache"}[outcome.cache]
    graphs = "1 capture" if outcome.captures == 1 else f"{outcome.captures} captures"
    return f"{outcome.compile_seconds:.1f} s to the first result ({stages}); {kept}; {graphs} for all batches"


def _time_text(outcome: Outcome) -> str:
    times = outcome.timings
    texts = [f"{name} {times.median(name) * 1e3:.1f} / {times.best(name) * 1e3:.1f}" for name in times.seconds]
    rate = f", {quantity(round(outcome.work / times.best('smelt')))}FLOP/s at best" if outcome.work else ""
    loaded = outcome.load is not None and outcome.load > IDLE_SHARE
    remark = f"; other processes kept {outcome.load:.1f} cores busy: not a measurement" if loaded else ""
    return (
        f"a batch of {outcome.batch[0]} x {outcome.batch[1]} tokens: {', '.join(texts)} ms (median / best of "
        f"{len(times.seconds['smelt'])} rounds in turns), {outcome.threads} threads each: "
        f"[bold]{times.ratio('eager', 'smelt'):.2f} times as fast[/bold]{rate}{remark}"
    )
