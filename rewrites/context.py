"""What the passes of one compilation share: fuel, log, facts about the target, and what they leave for the runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..ir.graph import Graph
from ..ir.node import Node
from .log import Application, Fuel, Log, Replaced
from .quantization import Quantized
from .registry import all_rules
from .rule import Rule
from .search.settings import SearchSettings


@dataclass(frozen=True)
class TargetFacts:
    """What passes need to know of the machine that the kernels will run on.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        threads: how many the kernels will use.
        store_transposes: whether a transposed weight that a product reads is stored so, at compile time.
    """

    device: str = "cpu"
    threads: int = 1
    store_transposes: bool = False


@dataclass(frozen=True)
class PassRecord:
    """What one pass did: its time in seconds, whether it changed the graph, and how large the graph is then."""

    name: str
    seconds: float
    changed: bool
    nodes: int
    applications: int

    def __str__(self) -> str:
        did = f"{self.applications} applications" if self.changed else "no change"
        return f"{self.name}: {did}, {self.nodes} nodes, {self.seconds * 1e3:.1f} ms"


@dataclass(frozen=True)
class Step:
    """One pass that was run: the graph before and after it, what it applied, and weights computed at load so far."""

    name: str
    before: Graph
    after: Graph
    applications: Sequence[Application]
    derived: Mapping[str, Node]


@dataclass
class Context:
    """The state of one compilation, and its record.

    Attributes:
        fuel: counts applications and may end them.
        log: every application.
        rules: the rules of each stage.
        target: facts about the machine.
        search: the limits of ``optimize="search"``; None for the usual ones.
        quantized: what ``quantize`` asks for, and what becomes of it; None where nothing was asked for.
        verify: check the graph before the first pass and after each.
        derived: weights computed once at load: their definitions by name, in an order in which they can be evaluated.
        snapshots: the graph after each pass, and as ``"captured"`` before the first.
        records: what each pass did.
        observe: called after each pass with what it did; a check of its work.
    """

    fuel: Fuel = field(default_factory=Fuel)
    log: Log = field(default_factory=Log)
    rules: Mapping[str, Sequence[Rule]] = field(default_factory=all_rules)
    target: TargetFacts = field(default_factory=TargetFacts)
    search: SearchSettings | None = None
    quantized: Quantized | None = None
    verify: bool = False
    derived: dict[str, Node] = field(default_factory=dict)
    snapshots: dict[str, Graph] = field(default_factory=dict)
    records: list[PassRecord] = field(default_factory=list)
    observe: Callable[[Step], None] | None = None

    def take(self, what: str, before: Node, after: Node, *also: Replaced) -> bool:
        """Whether one change may be made; counts and records it when so. ``also`` are further replacements by it."""
        return self.fuel.spend(self.log, what, before, after, *also)
