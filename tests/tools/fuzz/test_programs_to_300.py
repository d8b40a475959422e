"""Random programs agree along every way: the last 40 of the 300 that run each time, compiled to native code."""

from smelt.tools.fuzz.campaign import Plan, run_campaign

SEED = 2026
FIRST, COUNT = 260, 40


def test_all_ways_agree() -> None:
    summary = run_campaign(Plan(COUNT, seed=SEED, start=FIRST, native=True))
    assert summary.programs == COUNT
    assert not summary.failures, "\n".join(f"program {f.number}: {f.finding}" for f in summary.failures)
