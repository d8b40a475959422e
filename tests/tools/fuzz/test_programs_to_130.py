"""Random programs agree along every way but native code: the first 130 of the 300 that run each time."""

from smelt.tools.fuzz.campaign import Plan, run_campaign

SEED = 2026
FIRST, COUNT = 0, 130


def test_all_ways_agree() -> None:
    summary = run_campaign(Plan(COUNT, seed=SEED, start=FIRST, native=False))
    assert summary.programs == COUNT
    assert not summary.failures, "\n".join(f"program {f.number}: {f.finding}" for f in summary.failures)
