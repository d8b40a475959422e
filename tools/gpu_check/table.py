"""The tables of a record, as text for a terminal and as Markdown for a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .figures import NOT_MEASURED, Record, Rows, aims, bound, first_call, median, share
from .row import PARTS, SMELT, Part, Row
from .rows import rows_of

Cells = list[str]
BAD = ("wrong", "failed")


def cells_of(part: Part, rows: Rows, known: Sequence[Row]) -> tuple[Cells, list[Cells]]:
    """The head of a part's table and its lines, for some of its rows, measured or not."""
    if not part.unit:
        aimed = {row.name: _aims(row, rows) for row in known if row.targets}
        found = {name: (_result(record), aimed.get(name, "")) for name, record in _grouped(known, rows).items()}
        return ["check", "result"], [[name, ", ".join(filter(None, cells))] for name, cells in found.items()]
    if part.unit == "s":
        head = ["first call", "seconds", "aim"]
        return head, [[r.name, _first(r, rows.get(r.name, {})), _aims(r, rows)] for r in known]
    peers = list(dict.fromkeys(name for row in known for name in row.peers))
    unit = "ms" if part.unit == "ms" else ""
    head = [part.title.lower(), *(f"{name} {unit}".strip() for name in peers), "% of roof", "checked", "aim"]
    return head, [_timed(part, row, rows, peers) for row in known]


def _grouped(known: Sequence[Row], rows: Rows) -> dict[str, Record]:
    """Records by row, those of one class of kernels put together."""
    found: dict[str, Record] = {}
    for row in known:
        record = rows.get(row.name, {})
        name = f"kernels: {row.options['group']}" if row.kind == "cases" else row.name
        if name not in found or not found[name]:
            found[name] = record
        elif record:
            found[name] = _together(found[name], record)
    return found


def _together(left: Record, right: Record) -> Record:
    """Two records of cases as one, with the worse status."""
    order = [*BAD, "not reached", "dry", "ok"]
    status = min(left["status"], right["status"], key=order.index)
    made: dict[str, Any] = {"status": status}
    made |= {kind: left.get(kind, 0) + right.get(kind, 0) for kind in ("agreed", "left")}
    for kind in (*BAD, "refused"):
        both = {**left.get(kind, {}), **right.get(kind, {})}
        made |= {kind: both} if both else {}
    errors = [r["error"] for r in (left, right) if "error" in r]
    return made | ({"error": "; ".join(dict.fromkeys(errors))} if errors else {})


def _timed(part: Part, row: Row, rows: Rows, peers: Sequence[str]) -> Cells:
    record = rows.get(row.name, {})
    times = [_time(part, row, record, name) for name in peers]
    reached = share(record)
    return [row.name, *times, "-" if reached is None else f"{reached * 100:.0f}", _checked(record), _aims(row, rows)]


def _time(part: Part, row: Row, record: Record, peer: str) -> str:
    """A cell: the time, the rate of a kernel, or why there is none."""
    if peer not in row.peers:
        return ""
    seconds = median(record, peer)
    if seconds is None:
        return _why_not(record, peer)
    if part.unit == "ms":
        return f"{seconds * 1e3:.3f}"
    if bound(record) == "flops":
        return f"{record['flops'] / seconds / 1e12:.0f} TFLOP/s"
    return f"{record['bytes'] / seconds / 1e9:.0f} GB/s"


def _why_not(record: Record, peer: str) -> str:
    found = record.get("peers", {}).get(peer, {})
    status = record.get("status", "")
    if "wrong" in found:
        return "WRONG"
    if "failed" in found or (status == "failed" and peer == SMELT):
        return "FAILED"
    return status if status == "not reached" else NOT_MEASURED


def _first(row: Row, record: Record) -> str:
    seconds = first_call(record, row.peers[0])
    return _why_not(record, row.peers[0]) if seconds is None else f"{seconds:.1f}"


def _aims(row: Row, rows: Rows) -> str:
    return aims(row, rows.get(row.name, {}), rows)


def _checked(record: Record) -> str:
    """What smelt's result was held to, and how far it is off."""
    found = record.get("peers", {}).get(SMELT, {})
    if "error" not in found:
        return "-"
    if "eager_error" not in found:  # held against float64 alone
        return f"off by {found['error']:.1e}"
    over = found["error"] / found["eager_error"] if found["eager_error"] else 0.0
    text = f"{over:.1f}x eager's error"
    if "tokens" in found:
        text = f"{found['tokens']} tokens, {text}" + (f", {found['ties']} in a tie" if found["ties"] else "")
    return text


def _result(record: Record) -> str:
    """The outcome of a row that nothing is timed in."""
    if not record:
        return NOT_MEASURED
    status = record["status"]
    if status in BAD:
        return f"{status.upper()}: {fault(record)}"
    parts = [status]
    if "agreed" in record:
        parts.append(f"{record['agreed']} agree")
    if record.get("left"):
        parts.append(f"{record['left']} not reached")
    if record.get("refused"):
        parts.append(f"{len(record['refused'])} not offered")
    if "launches" in record:
        parts.append(f"{record['launches']} for each layer")
    if record.get("error"):
        parts.append(record["error"])
    return ", ".join([*parts, *([_checked(record)] if _checked(record) != "-" else [])])


def fault(record: Record) -> str:
    """What is wrong in a record, in one line; empty where nothing is."""
    if record.get("error") and record.get("status") in BAD:
        return str(record["error"])
    for kind in BAD:
        if isinstance(record.get(kind), Mapping):
            return "; ".join(f"{name}: {why}" for name, why in record[kind].items())[:400]
    found = record.get("peers", {}).get(SMELT, {})
    return str(next((found[kind] for kind in BAD if kind in found), ""))


def faults(data: Record) -> list[str]:
    """Each row that is wrong or failed, and each peer that did, with what was said."""
    found = []
    for part, held in data["parts"].items():
        for name, record in held["rows"].items():
            if record.get("status") in BAD:
                found.append(f"{part}: {name}: {record['status']}: {fault(record)}")
            others = {n: p for n, p in record.get("peers", {}).items() if n != SMELT}
            found += [f"{part}: {name}: {n}: {p[k]}" for n, p in others.items() for k in BAD if k in p]
    return found


def text(data: Record, parts: Sequence[str]) -> str:
    """The tables of some parts for a terminal, short: what is as it should be is counted, and all faults are last."""
    lines: list[str] = []
    for name in parts:
        rows = data["parts"].get(name, {}).get("rows", {})
        head, shown = cells_of(PARTS[name], rows, [row for row in rows_of(name) if row.name in rows])
        if not PARTS[name].unit:
            shown, counts = _remarkable(shown)
            head = [head[0], counts]
        if rows:
            lines += ["", PARTS[name].title, *_aligned([head, *(_short(cells) for cells in shown)])]
    bad = [line for line in faults(data) if line.startswith(tuple(f"{name}: " for name in parts))]
    return "\n".join([*lines, *(["", "What went wrong:", *(f"  {line[:300]}" for line in bad)] if bad else [])])


def _remarkable(lines: Sequence[Cells]) -> tuple[list[Cells], str]:
    """The lines of checks that are not simply well, and how many of the others there are of each kind."""
    plain: Counter[str] = Counter()
    found = []
    for cells in lines:
        kind = cells[1].partition(",")[0]
        if kind in ("ok", "dry", "skipped") and ": missed" not in cells[1]:
            plain[kind] += 1
        else:
            found.append(cells)
    return found, ", ".join(f"{count} {kind}" for kind, count in plain.items())


def _short(cells: Cells) -> Cells:
    return [cell.replace(f": {NOT_MEASURED}", "").replace(NOT_MEASURED, "-") for cell in cells]


def _aligned(lines: Sequence[Cells]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def markdown(part: Part, rows: Mapping[str, Any]) -> str:
    """A part's table for a page."""
    head, lines = cells_of(part, rows, rows_of(part.name))
    rule = ["---", *["--:" if part.unit else "---"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in [head, rule, *lines])
