"""The demo: a pretrained model searches real text, and what it shows fits one screen."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from smelt.tools import cli
from smelt.tools.corpus import QUERIES, SENTENCES
from smelt.tools.demo import OperatorCount
from smelt.tools.search import LoadError, batches_of, load_encoder, rank

pytest.importorskip("transformers")


def test_the_corpus() -> None:
    assert len(set(SENTENCES)) == len(SENTENCES) == 60
    assert all(len(sentence) <= 80 for sentence in SENTENCES)
    assert not set(QUERIES) & set(SENTENCES)


def test_ranking() -> None:
    scores, places = rank(torch.eye(2), torch.tensor([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0]]))
    assert places.tolist() == [[2, 1, 0], [0, 1, 2]]
    torch.testing.assert_close(scores[0], torch.tensor([1.0, 0.6, 0.0]))


def test_views_are_not_counted() -> None:
    with OperatorCount() as count:
        x = torch.ones(4, 4)
        (x.T.reshape(16)[2:] + 1).view(7, 2).relu()
    # ones, the copy that reshape makes, add, relu
    assert count.total == 4


def test_batches_are_padded_each_to_its_longest() -> None:
    _, tokenizer, _ = load_encoder(None)
    batches = batches_of(tokenizer, SENTENCES, 16)
    assert [batch["input_ids"].shape[0] for batch in batches] == [16, 16, 16, 12]
    assert len({batch["input_ids"].shape[1] for batch in batches}) > 1
    assert all(batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1] for batch in batches)


def test_a_model_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be loaded"):
        load_encoder(str(tmp_path))
    result = CliRunner().invoke(cli.app, ["demo", "--model", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


@pytest.fixture(scope="module")
def runs() -> tuple[str, str]:
    """What the demo prints: the screen, and as JSON."""
    found = []
    for options in (["--rounds", "1"], ["--rounds", "1", "--json"]):
        result = CliRunner().invoke(cli.app, ["demo", *options])
        assert result.exit_code == 0, result.output
        found.append(result.stdout)
    return found[0], found[1]


def test_the_screen(runs: tuple[str, str]) -> None:
    lines = runs[0].splitlines()
    assert len(lines) <= 45
    assert all(len(line) <= 100 for line in lines)
    for expected in (
        *QUERIES,
        "the same as eager's",
        "a layer; eager runs",
        "s to the first result",
        "rounds in turns",
    ):
        assert expected in " ".join(runs[0].split()), expected


def test_what_it_shows_is_right(runs: tuple[str, str]) -> None:
    data = json.loads(runs[1])
    assert data["same_ranking"]
    assert data["max_error"] < 1e-5
    assert data["captures"] == 1
    assert data["fallbacks"] == []
    assert 0 < data["calls"] < data["operators"]
    assert data["layers"] == 6
    assert len(data["hits"]) == len(QUERIES)
    best = [SENTENCES[hits[0]["sentence"]] for hits in data["hits"]]
    assert "password" in best[0]
    assert "tide" in best[2]
    assert "Compound interest" in best[4]
    for hits in data["hits"]:
        scores = [hit["score"] for hit in hits]
        assert scores == sorted(scores, reverse=True)
