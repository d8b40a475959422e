"""``smelt explain``: why a model runs as it does, and why a rule did not fire."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from ..runtime.artifact.targets import named_target
from ..runtime.compile import compile
from ..runtime.explain import Explanation
from ..runtime.explain_text import explanation_text
from ..runtime.whynot import rule_named, why_not_of
from .console import busy, emit_json, emit_text, warn
from .dump_ir import compiled
from .errors import check_output
from .models import Model, load_model
from .plot import require_matplotlib, roofline

SHOWN = 5


def explain(
    spec: str,
    rule: str | None,
    measure: bool,
    everything: bool,
    plot: Path | None,
    as_json: bool,
    target: str = "auto",
) -> None:
    """Print the explanation of a model for a target, or what became of one rule in it.

    Raises:
        SmeltError: the model cannot be loaded or captured, there is no such rule, or matplotlib is missing.
    """
    if plot is not None:
        require_matplotlib()
        check_output(plot)
    if rule is not None:
        if target != "auto":
            raise typer.BadParameter("--why-not goes without --target: rules are the same for all")
        if measure or plot is not None:
            raise typer.BadParameter("--why-not goes with neither --measure nor --plot")
        model = load_model(spec)  # which may register the rule
        rule_named(rule)
        why_not(model, rule, everything, as_json)
        return
    model = load_model(spec)
    with busy(f"explaining {model.name}"):
        found = explanation_of(model, measure, target)
    if plot is not None:
        roofline(found, plot)
    if as_json:
        emit_json({"name": model.name} | found.to_dict())
    else:
        emit_text(explanation_text(found, everything))


def explanation_of(model: Model, measure: bool, target: str = "auto") -> Explanation:
    """The explanation of a model for its example call. For a GPU that need not be there nothing is run."""
    if target.startswith("sm_"):
        fast = compile(model.model, target=named_target(target))
        found = fast.explain(model.args, model.kwargs, measure=measure)
        return replace(found, target=f"a GPU {target}, which need not be here")
    fast = compile(model.model, target=target)
    fast(*model.args, **model.kwargs)
    if fast.is_split:
        if measure:
            warn("the model is split into several graphs, which are not measured one by one")
        return fast.explain()
    return fast.explain(model.args, model.kwargs, measure=measure)


def why_not(model: Model, rule: str, everything: bool, as_json: bool) -> None:
    """Print where a rule fired in a model, and where it nearly did."""
    with busy(f"compiling {model.name}"):
        found = [why_not_of(entry, rule, 1000 if everything else SHOWN) for entry in compiled(model)]
    if as_json:
        emit_json({"name": model.name, "parts": [one.to_dict() for one in found]})
    else:
        emit_text("\n".join(one.text(everything) for one in found))
