"""The table of a benchmark as Markdown, and a page that holds it, made from the JSON that ``smelt bench`` wrote.

Run as ``python -m smelt.tools.bench.page docs/benchmarks/FILE.json [PAGE.md ...]``: in each page, what stands between
``<!-- bench FILE.json -->`` and ``<!-- end -->`` is replaced; without pages the table is printed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ...ir.errors import SmeltError
from .outcome import HEAVY, MARK
from .peers import SMELT

Record = Mapping[str, Any]


class PageError(SmeltError, ValueError):
    """A page has no place for a table, or more than one."""


def markdown(record: Record) -> str:
    """The table: a line for each workload, a column for each peer, and what was measured, when and where."""
    if "decode" in record:
        return decode_markdown(record)
    names = list(dict.fromkeys(name for found in record["workloads"] for name in found["summary"]))
    head = ["workload", *(f"{name} ms" for name in names), "best peer / smelt", "% of roof"]
    lines = [_row(head), _row(["---", *["--:"] * (len(head) - 1)])]
    lines += [_row(_cells(found, names)) for found in record["workloads"]]
    return "\n".join([*lines, *_starts(record), "", caption(record)])


def _starts(record: Record) -> list[str]:
    """A table of cold and warm starts, where they were measured: medians of the tries, ratios within tries."""
    measured = [found for found in record["workloads"] if any(found.get("starts", {}).values())]
    if not measured:
        return []
    names = list(dict.fromkeys(name for found in measured for name in found["starts"]))
    kinds = ("cold", "warm")
    others = [name for name in names if name != SMELT]
    head = ["start", *(f"{name} {kind} s" for name in names for kind in kinds), *(f"cold {n} / smelt" for n in others)]
    lines = ["", _row(head), _row(["---", *["--:"] * (len(head) - 1)])]
    for found in measured:
        starts, cells = found["starts"], [found["model"].removeprefix("zoo:")]
        cells += [_seconds(starts, name, kind) for name in names for kind in kinds]
        lines.append(_row([*cells, *(_times_as_long(starts, name) for name in others)]))
    tries = max(len(each["cold"]) for found in measured for each in found["starts"].values())
    return [*lines, "", f"Starts: from a model in memory to its first result; medians of {tries} in turns."]


def _seconds(starts: Record, name: str, kind: str) -> str:
    return f"{median(each['first'] for each in starts[name][kind]):.2f}" if name in starts else "-"


def _times_as_long(starts: Record, name: str) -> str:
    """How many times as long a peer's cold start takes: the median of the ratios within tries."""
    if not {name, SMELT} <= starts.keys():
        return "-"
    tries = zip(starts[name]["cold"], starts[SMELT]["cold"], strict=False)
    return f"{median(theirs['first'] / ours['first'] for theirs, ours in tries):.1f}"


def decode_markdown(record: Record) -> str:
    """The table of ``--decode``: milliseconds for each token after the first."""
    outcomes = record["decode"]
    names = list(dict.fromkeys(name for found in outcomes for name in found["summary"]))
    head = ["generate", *(f"{name} ms/token" for name in names), "best peer / smelt"]
    lines = [_row(head), _row(["---", *["--:"] * (len(head) - 1)])]
    for found in outcomes:
        summary, loads = found["summary"], (found["load"], found["load_during"])
        steps = [f"{summary[n]['step'] * 1e3:.2f}" if n in summary else "-" for n in names]
        ratios = [summary[n]["ratio"] for n in summary if not n.startswith("smelt")]
        mark = MARK if max(x or 0.0 for x in loads) > HEAVY else ""
        caches = found.get("kv_cache_dtype", "")
        name = found["model"].removeprefix("zoo:") + (f", caches in {caches}" if caches else "")
        lines.append(_row([name, *steps, f"{mark}{min(ratios):.2f}" if ratios else "-"]))
    first, facts = outcomes[0], record["environment"]
    rounds, (batch, prompt) = len(next(iter(first["whole"]["seconds"].values()))), first["inputs"]
    rounded = ", with caches rounded as smelt's are" if first.get("kv_cache_dtype") else ""
    lines += [
        "",
        f"{record['date']}, {facts['machine']['processor']}, {first['threads']} threads each, PyTorch "
        f"{facts['versions']['torch']}: greedy, {first['tokens']} tokens after {prompt}, batch {batch}, all of them "
        f"eager's{rounded}; medians of {rounds} rounds in turns, Python of `generate` included.",
    ]
    return "\n".join(lines)


def caption(record: Record) -> str:
    """The date, the machine and its roofs, and how the numbers came about."""
    facts, first = record["environment"], record["workloads"][0]
    rounds = len(next(iter(first["timings"]["seconds"].values())))
    threads = first["threads"]
    rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in record["roofs"]["peaks"].items())
    busiest = max((x or 0.0) for found in record["workloads"] for x in (found["load"], found["load_during"]))
    marked = any(found["loaded"] for found in record["workloads"])
    note = f" {MARK} marks ratios taken while others kept more than {HEAVY} cores busy." if marked else ""
    return (
        f"{record['date']}, {facts['machine']['processor']}, {threads} threads each, PyTorch "
        f"{facts['versions']['torch']}: medians of {rounds} rounds in turns; others kept at most {busiest:.1f} cores "
        f"busy. The ratio is the median of the ratios within rounds. Roofs: {rates} Gop/s, "
        f"{record['roofs']['bytes_per_second'] / 1e9:.0f} GB/s.{note}"
    )


def _cells(found: Record, names: Sequence[str]) -> list[str]:
    times = [f"{found['summary'][n]['median'] * 1e3:.2f}" if n in found["summary"] else "-" for n in names]
    ratios = [ratio for name, ratio in found["ratios"].items() if name != "smelt"]
    share = found["share"].get("smelt")
    mark = MARK if found["loaded"] else ""
    best = f"{mark}{min(ratios):.2f}" if ratios and "smelt" in found["ratios"] else "-"
    return [f"{found['model'].removeprefix('zoo:')} {found['dtype']}", *times, best, _percent(share)]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.0f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def replaced(page: str, name: str, table: str) -> str:
    """The page with the table of the file ``name`` between its marks.

    Raises:
        PageError: the marks are not there once.
    """
    marks = re.compile(rf"(<!-- bench {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    made, count = marks.subn(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", page)
    if count != 1:
        raise PageError(f"<!-- bench {name} --> ... <!-- end --> is there {count} times: it must be there once")
    return made


def main(file: str, *pages: str) -> None:
    """Print a table, or put it into pages."""
    path = Path(file)
    table = markdown(json.loads(path.read_text(encoding="utf-8")))
    if not pages:
        print(table)
    for page in map(Path, pages):
        page.write_text(replaced(page.read_text(encoding="utf-8"), path.name, table), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
