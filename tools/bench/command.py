"""The command ``smelt bench``."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...ir.cost import Roofs
from ...runtime.roofs import measure as measure_roofs
from ...runtime.roofs import meters
from ...runtime.target import Target, usable_cores
from ..console import busy, emit_json, out
from ..env import facts, version_of
from ..errors import ModelError, check_output
from ..plot import draw, require_matplotlib
from .decode import bench_decode, decode_heading, decode_record, decode_remarks, decode_table
from .outcome import ROOF, Outcome
from .peers import SMELT
from .run import How, check_dtype, measure, parse_peers
from .show import heading, remarks, table
from .sweep import Sweep, measure_sweep, summary

PEER_PACKAGES = ("onnxruntime", "openvino")
TOLD = ("versions", "machine", "target")  # of the environment: no folders of whoever measured


def bench(
    specs: Sequence[str],
    *,
    threads: int | None = None,
    rounds: int = 15,
    peers: str = "eager,inductor",
    starts: int = 1,
    dtype: str = "f32",
    sweep: Sequence[str] = (),
    json_file: Path | None = None,
    picture: Path | None = None,
    decode: int = 0,
    kv_cache_dtype: str = "",
) -> None:
    """Time models and print the outcomes; see ``smelt bench --help``. ``decode`` is how many tokens to generate.

    ``kv_cache_dtype`` is what smelt's caches are then rounded to.

    Raises:
        VerifyError: a compiled model's result is not eager's, so that timing it means nothing.
        SmeltError: a model cannot be loaded, or there is no such peer, dtype or sweep.
    """
    names = [SMELT, *(name for name in parse_peers(peers) if name != SMELT)]
    for path in (json_file, picture):
        if path is not None and str(path) != "-":
            check_output(path)
    if decode:
        if dtype != "f32" or sweep or picture is not None:
            raise ModelError("--decode is for float32, without --sweep and --plot")
        _bench_decode(specs, names, threads or usable_cores(), rounds, decode, json_file, kv_cache_dtype)
        return
    if kv_cache_dtype:
        raise ModelError("--kv-cache-dtype is for --decode, which times generate with its caches")
    if picture is not None:
        require_matplotlib()
    check_dtype(dtype)
    sizes = Sweep.parse(sweep) if sweep else None
    target = Target.detect(threads=threads or usable_cores())
    with busy("measuring what this machine reaches"):
        roofs = measure_roofs(target)
        how = How(target.threads, rounds, starts, dtype, picture is not None, meters(target, ROOF[dtype]))
    outcomes: list[Outcome] = []
    printed = str(json_file) != "-"
    for outcome in _outcomes(specs, names, how, sizes):
        outcomes.append(outcome)
        if json_file is not None and printed:  # after each: a long run that ends early leaves what it has
            json_file.write_text(json.dumps(record(outcomes, roofs), indent=1, default=str) + "\n", encoding="utf-8")
        if printed:
            out().print(heading(outcome), style="bold", markup=False)
            out().print(table(outcome))
    if picture is not None:
        dots = [dot for outcome in outcomes for dot in outcome.kernels]
        draw(dots, roofs, picture, f"kernels on {facts()['machine']['processor']}, {how.threads} threads")
    if not printed:
        emit_json(record(outcomes, roofs))
        return
    if sizes is not None:
        out().print(summary(outcomes), markup=False)
    out().print(remarks(outcomes, roofs), style="dim", markup=False)


def _bench_decode(
    specs: Sequence[str],
    names: Sequence[str],
    threads: int,
    rounds: int,
    tokens: int,
    json_file: Path | None,
    kv_cache_dtype: str,
) -> None:
    """Time ``generate``."""
    outcomes = bench_decode(specs, names, threads, rounds, tokens, kv_cache_dtype)
    if str(json_file) == "-":
        emit_json(decode_record(outcomes))
        return
    if json_file is not None:
        json_file.write_text(json.dumps(decode_record(outcomes), indent=1, default=str) + "\n", encoding="utf-8")
    for outcome in outcomes:
        out().print(decode_heading(outcome), style="bold", markup=False)
        out().print(decode_table(outcome))
    out().print(decode_remarks(outcomes), style="dim", markup=False)


def _outcomes(specs: Sequence[str], names: Sequence[str], how: How, sizes: Sweep | None) -> Iterator[Outcome]:
    for spec in specs:
        if sizes is None:
            yield measure(spec, names, how)
        else:
            yield from measure_sweep(spec, names, how, sizes)


def record(outcomes: Sequence[Outcome], roofs: Roofs) -> dict[str, Any]:
    """Everything as data for JSON: outcomes, roofs, the date, and what is needed to judge them."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "roofs": asdict(roofs),
        "workloads": [
            outcome.to_dict()
            | {
                "share": {n: outcome.share(n) for n in outcome.timings.seconds},
                "bound": outcome.bound,
            }
            for outcome in outcomes
        ],
        "environment": _environment(),
    }


def _environment() -> dict[str, Any]:
    """Versions, machine and target."""
    found = {group: values for group, values in facts().items() if group in TOLD}
    found["versions"] = found["versions"] | {package: version_of(package) for package in PEER_PACKAGES}
    return found
