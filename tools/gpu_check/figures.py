"""What the tables say, computed from a record; a figure that was not measured is None, never an estimate."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .row import OURS, SMELT, TUNED, Row

Record = Mapping[str, Any]
Rows = Mapping[str, Record]  # the records of a part, by row


def median(record: Record, peer: str) -> float | None:
    """The seconds of a call by a peer."""
    found: float | None = record.get("peers", {}).get(peer, {}).get("median")
    return found


def first_call(record: Record, peer: str) -> float | None:
    """The seconds of a peer's first call."""
    found: float | None = record.get("peers", {}).get(peer, {}).get("first_call")
    return found


def share(record: Record, peer: str = SMELT) -> float | None:
    """The share of the nearer roof that a peer reaches: the median over rounds, each with the roofs of that round."""
    times, roofs = record.get("peers", {}).get(peer, {}).get("rounds"), record.get("roofs")
    if not times or not roofs:
        return None
    floors = [
        max(record["flops"] / flops, record["bytes"] / rate)
        for flops, rate in zip(roofs["flops"], roofs["bytes"], strict=True)
    ]
    found: float = statistics.median(floor / seconds for floor, seconds in zip(floors, times, strict=True))
    return found


def bound(record: Record) -> str:
    """The nearer roof: ``flops`` or ``bytes``; empty where it was not measured."""
    roofs = record.get("roofs")
    if not roofs:
        return ""
    computing, moving = (record[n] / statistics.median(roofs[n]) for n in ("flops", "bytes"))
    return "flops" if computing >= moving else "bytes"


def ratio(record: Record, peer: str, to: str = SMELT) -> float | None:
    """How many times as long a peer takes as smelt: the median of the ratios within rounds."""
    peers = record.get("peers", {})
    mine, theirs = (peers.get(name, {}).get("rounds") for name in (to, peer))
    if not mine or not theirs:
        return None
    found: float = statistics.median(a / b for a, b in zip(theirs, mine, strict=True))
    return found


def _per(name: str, peers: Sequence[str], scale: float) -> Callable[[Row, Record, Rows], float | None]:
    """Operations or bytes a second, of the fastest of some peers."""

    def figure(row: Row, record: Record, rows: Rows) -> float | None:
        times = [median(record, peer) for peer in (peers or row.peers)]
        found = [record[name] / seconds / scale for seconds in times if seconds]
        return max(found, default=None)

    return figure


def _ms(row: Row, record: Record, rows: Rows) -> float | None:
    seconds = median(record, SMELT)
    return None if seconds is None else seconds * 1e3


def _share_of_tuned(row: Row, record: Record, rows: Rows) -> float | None:
    """The time of the first call over that of max-autotune's, which is a row of its own."""
    mine = first_call(record, SMELT)
    theirs = next((s for s in (first_call(other, TUNED) for other in rows.values()) if s), None)
    return None if mine is None or theirs is None else mine / theirs


def _launched(name: str) -> Callable[[Row, Record, Rows], float | None]:
    return lambda row, record, rows: record.get("launched", {}).get(name)


FIGURES: dict[str, tuple[str, Callable[[Row, Record, Rows], float | None]]] = {
    "ms": ("{:.2f} ms", _ms),
    "share": ("{:.0%} of the roof", lambda row, record, rows: share(record)),
    "tflops": ("{:.0f} TFLOP/s", _per("flops", (SMELT,), 1e12)),
    "best_tflops": ("best {:.0f} TFLOP/s", _per("flops", (), 1e12)),
    "over_tuned": ("{:.2f}x max-autotune", lambda row, record, rows: ratio(record, TUNED)),
    "launches": ("{:.0f} launches a layer", lambda row, record, rows: record.get("launches")),
    "graph_launches": ("{:.0f} graph launches", _launched("graph_launches")),
    "seconds": ("{:.1f} s", lambda row, record, rows: first_call(record, SMELT)),
    "share_of_tuned": ("{:.3f} of max-autotune", _share_of_tuned),
}
NOT_MEASURED = "not measured"


def aims(row: Row, record: Record, rows: Rows) -> str:
    """What is aimed at in a row, and whether it was reached: ``<= 0.66 ms: reached (0.61)``."""
    return "; ".join(_aim(row, record, rows, number) for number in range(len(row.targets)))


def _aim(row: Row, record: Record, rows: Rows, number: int) -> str:
    target = row.targets[number]
    shown, figure = FIGURES[target.figure]
    found = figure(row, record, rows)
    text = f"{target.sign} {shown.format(target.limit)}"
    if found is None:
        return f"{text}: {NOT_MEASURED}"
    return f"{text}: {'reached' if target.met(found) else 'missed'}, {shown.format(found)}"


def best_peer(record: Record) -> tuple[str, float] | None:
    """The fastest but smelt, and its time over smelt's; None where neither was timed."""
    names = [n for n in record.get("peers", {}) if n not in OURS and median(record, n) is not None]
    found = [(name, value) for name in names if (value := ratio(record, name)) is not None]
    return min(found, key=lambda pair: pair[1], default=None)
