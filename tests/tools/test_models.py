"""The models that a command line names, and what is said where it names none."""

import re
import sys
from pathlib import Path

import pytest
import torch

from smelt.tools.errors import ModelError, UserCodeError
from smelt.tools.models import load_model

GOOD = """
import torch
def make_model():
    return torch.nn.Linear(4, 2).eval(), (torch.ones(3, 4),)
def with_kwargs():
    return torch.nn.Linear(4, 2).eval(), [], {"input": torch.ones(3, 4)}
def one_tensor():
    return torch.nn.ReLU().eval(), torch.ones(3)
def function():
    return torch.relu, (torch.ones(3),), {}
def nothing(): pass
def no_args(): return (torch.relu,)
def bad_args(): return torch.relu, 3
def bad_kwargs(): return torch.relu, (), 3
def no_model(): return 3, ()
number = 3
def fails(): return helper()
def helper(): raise RuntimeError("no weights here")
def leaves(): raise SystemExit(3)
"""


@pytest.fixture
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / f"models_{abs(hash(request.node.name))}.py"
    path.write_text(GOOD)
    return path


@pytest.fixture(autouse=True)
def clean_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_the_zoo() -> None:
    model = load_model("zoo:two-layer-mlp:tiny")
    assert model.name == "zoo:two-layer-mlp:tiny"
    assert model().shape == (32, 1)
    assert load_model("zoo:mean-classifier").args[0].shape == (16, 64)


@pytest.mark.parametrize("function", ["make_model", "with_kwargs", "one_tensor", "function", ""])
def test_a_file(file: Path, function: str) -> None:
    model = load_model(f"{file}:{function}" if function else str(file))
    assert isinstance(model(), torch.Tensor)


def test_a_file_imports_what_lies_beside_it(file: Path) -> None:
    (file.parent / "beside_it_1.py").write_text("import torch\nMODEL = torch.nn.ReLU()\n")
    file.write_text("from beside_it_1 import MODEL\ndef make_model(): return MODEL, (__import__('torch').ones(2),)\n")
    assert load_model(str(file))().shape == (2,)


def test_a_module_of_the_current_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = file.parent / "package_of_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    file.rename(package / "some.py")
    monkeypatch.chdir(file.parent)
    assert load_model("package_of_models.some:make_model")().shape == (3, 2)
    assert load_model("package_of_models.some")().shape == (3, 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("zoo:qqq", "no model zoo:qqq; there are: nn-transformer, "),
        ("zoo:bert", "did you mean bert-base?"),
        ("zoo:two-layer-mlp:small", "no variant 'small'"),
        ("nowhere.py:make_model", "no file nowhere.py"),
        ("some/folder", "no file some/folder"),
        ("", "a model is given as zoo:NAME"),
        ("a b:c d", "a model is given as zoo:NAME"),
        ("{file}:absent", "no function absent"),
        ("{file}:number", "no function number"),
        ("{file}:nothing", "returned a NoneType: it must return"),
        ("{file}:no_args", "returned a tuple: it must return"),
        ("{file}:bad_args", "returned args as int"),
        ("{file}:bad_kwargs", "kwargs as int"),
        ("{file}:no_model", "it must return"),
    ],
)
def test_what_is_no_model(file: Path, spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        load_model(spec.format(file=file))


def traceback_of(spec: str) -> str:
    with pytest.raises(UserCodeError) as raised:
        load_model(spec)
    return str(raised.value)


def test_the_traceback_is_the_users(file: Path) -> None:
    text = traceback_of(f"{file}:fails")
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith("RuntimeError: no weights here")
    assert re.findall(r"in (\w+)", text) == ["fails", "helper"]
    assert "smelt" not in text.replace(str(file), "")


def test_a_file_that_cannot_be_imported(file: Path) -> None:
    file.write_text("import torch\n\nimport a_package_that_is_not_there\n")
    text = traceback_of(str(file))
    assert "line 3" in text
    assert "No module named 'a_package_that_is_not_there'" in text
    assert "importlib" not in text


def test_a_file_that_is_no_python(file: Path) -> None:
    file.write_text("def make_model(:\n")
    assert "SyntaxError" in traceback_of(str(file))


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(
        ModelError, match=r"no module a_package_that_is_not_there\.models: a model is given as zoo:NAME"
    ):
        load_model("a_package_that_is_not_there.models:make_model")
    with pytest.raises(ModelError, match=r"did you mean zoo:vit-base\?"):
        load_model("vit-base")
    with pytest.raises(ModelError, match=r"did you mean zoo:minilm\?"):
        load_model("minilm")


def test_a_model_that_leaves_the_process(file: Path) -> None:
    assert traceback_of(f"{file}:leaves").endswith("SystemExit: 3")
