"""Tables of benchmarks in pages: made from JSON, and equal to it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from smelt.tools.bench import page

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"<!-- bench (\S+) -->")


def record() -> dict[str, Any]:
    found = {
        "model": "zoo:bert-base@8x128",
        "dtype": "f32",
        "threads": 2,
        "load": 0.04,
        "load_during": 0.1,
        "loaded": False,
        "timings": {"seconds": {"smelt": [0.1, 0.1], "eager": [0.15, 0.16]}},
        "summary": {"smelt": {"median": 0.1, "best": 0.09}, "eager": {"median": 0.155, "best": 0.15}},
        "ratios": {"smelt": 1.0, "eager": 1.55},
        "share": {"smelt": 0.874, "eager": None},
    }
    other = found | {
        "model": "mine.py",
        "summary": {"smelt": {"median": 0.002, "best": 0.001}},
        "ratios": {"smelt": 1.0},
    }
    return {
        "date": "2026-01-02",
        "workloads": [found, other],
        "roofs": {"peaks": {"float32": 2.6e11}, "bytes_per_second": 3.1e10},
        "environment": {"machine": {"processor": "a processor"}, "versions": {"torch": "2.13.0"}},
    }


def test_a_table() -> None:
    lines = page.markdown(record()).splitlines()
    assert lines[0] == "| workload | smelt ms | eager ms | best peer / smelt | % of roof |"
    assert lines[2] == "| bert-base@8x128 f32 | 100.00 | 155.00 | 1.55 | 87 |"
    assert lines[3] == "| mine.py f32 | 2.00 | - | - | 87 |"
    assert "2026-01-02, a processor, 2 threads each" in lines[-1]
    assert "float32 260 Gop/s, 31 GB/s" in lines[-1]


def test_a_table_of_starts() -> None:
    data = record()
    data["workloads"][0]["starts"] = {
        "smelt": {"cold": [{"first": 2.0}, {"first": 1.0}, {"first": 4.0}], "warm": [{"first": 0.3}]},
        "inductor": {"cold": [{"first": 16.0}, {"first": 9.0}, {"first": 16.0}], "warm": [{"first": 3.0}]},
    }
    lines = page.markdown(data).splitlines()
    assert lines[5:8] == [
        "| start | smelt cold s | smelt warm s | inductor cold s | inductor warm s | cold inductor / smelt |",
        "| --- | --: | --: | --: | --: | --: |",
        "| bert-base@8x128 | 2.00 | 0.30 | 16.00 | 3.00 | 8.0 |",
    ]
    assert lines[9].endswith("medians of 3 in turns.")


def test_a_table_of_generated_tokens() -> None:
    found = {
        "model": "zoo:gpt2",
        "inputs": [1, 128],
        "tokens": 32,
        "threads": 2,
        "load": 0.0,
        "load_during": 0.1,
        "whole": {"seconds": {"smelt": [1.0, 1.1, 1.0]}},
        "summary": {"smelt": {"step": 0.011, "ratio": 1.0}, "eager": {"step": 0.033, "ratio": 3.0}},
    }
    data = record() | {"decode": [found, found | {"model": "mine", "load_during": 0.9}]}
    lines = page.markdown(data).splitlines()
    assert lines[0] == "| generate | smelt ms/token | eager ms/token | best peer / smelt |"
    assert lines[2:4] == ["| gpt2 | 11.00 | 33.00 | 3.00 |", "| mine | 11.00 | 33.00 | ~3.00 |"]
    assert "32 tokens after 128, batch 1" in lines[-1]
    assert "medians of 3 rounds" in lines[-1]


def test_a_table_of_rounded_caches() -> None:
    steps = {"smelt": 1.0, "smelt, caches not rounded": 1.1, "eager": 3.0}
    found = {
        "model": "zoo:gpt2",
        "inputs": [1, 128],
        "tokens": 32,
        "threads": 2,
        "load": 0.0,
        "load_during": 0.1,
        "kv_cache_dtype": "int8",
        "whole": {"seconds": {"smelt": [1.0]}},
        "summary": {name: {"step": ratio / 100, "ratio": ratio} for name, ratio in steps.items()},
    }
    lines = page.markdown(record() | {"decode": [found]}).splitlines()
    assert lines[2] == "| gpt2, caches in int8 | 10.00 | 11.00 | 30.00 | 3.00 |"
    assert "all of them eager's, with caches rounded as smelt's are" in lines[-1]


def test_ratios_under_heavy_load_are_marked() -> None:
    loaded = record()
    loaded["workloads"][0] |= {"loaded": True, "load_during": 1.9}
    text = page.markdown(loaded)
    assert "| ~1.55 |" in text
    assert "others kept at most 1.9 cores busy" in text
    assert "~ marks ratios taken while others kept more than 0.5 cores busy" in text
    assert "~" not in page.markdown(record())


def test_a_page_gets_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(record()))
    text = "before\n<!-- bench a.json -->\nold\n<!-- end -->\nafter <!-- bench b.json -->\nkept\n<!-- end -->\n"
    (tmp_path / "page.md").write_text(text)
    page.main(str(tmp_path / "a.json"), str(tmp_path / "page.md"))
    written = (tmp_path / "page.md").read_text()
    assert page.markdown(record()) in written
    assert "old" not in written
    assert written.endswith("after <!-- bench b.json -->\nkept\n<!-- end -->\n")
    assert page.replaced(written, "a.json", page.markdown(record())) == written


def test_a_page_without_a_place() -> None:
    with pytest.raises(page.PageError, match=r"bench a\.json --> \.\.\. <!-- end --> is there 0 times"):
        page.replaced("nothing", "a.json", "table")


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_pages_show_what_was_measured(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in MARK.findall(text):
        table = page.markdown(json.loads((ROOT / "docs" / "benchmarks" / name).read_text(encoding="utf-8")))
        assert page.replaced(text, name, table) == text
