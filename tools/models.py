"""The models that commands take: ``zoo:NAME``, ``path.py:make_model`` or ``package.module:make_model``.

``zoo:NAME@8x128`` has inputs of batch 8 and length 128.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import torch

from .errors import ModelError, UserCodeError
from .zoo import ZOO

DEFAULT_FUNCTION = "make_model"
_FORMS = "zoo:NAME, zoo:NAME:tiny, zoo:NAME@8x128, path.py:make_model or package.module:make_model"


@dataclass(frozen=True)
class Model:
    """A model to work on, with arguments to call it with."""

    name: str
    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self) -> Any:
        """Run the model in PyTorch."""
        with torch.no_grad():
            return self.model(*self.args, **self.kwargs)


def load_model(spec: str) -> Model:
    """The model that a command line names.

    Raises:
        ModelError: there is no such model, or what makes it returns something else than (model, args[, kwargs]).
        UserCodeError: importing or making it raised.
    """
    head, _, rest = spec.partition(":")
    if head == "zoo":
        return _from_zoo(rest)
    source, function = _split(spec)
    maker = _function(import_source(source), function, spec)
    return _checked(spec, _run_user_code(maker))


def _from_zoo(name: str) -> Model:
    full, at, size = name.partition("@")
    name, _, variant = full.partition(":")
    if name not in ZOO:
        near = difflib.get_close_matches(name, ZOO, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(ZOO)}"
        raise ModelError(f"there is no model zoo:{name}; {hint}")
    if variant not in ("", "tiny"):
        raise ModelError(f"zoo:{name} has no variant {variant!r}: say zoo:{name} or zoo:{name}:tiny")
    model, args, kwargs = ZOO[name].make(tiny=variant == "tiny")
    if at:
        args, kwargs = ZOO[name].inputs(model, *_size(size))
    return Model(f"zoo:{name}{':tiny' if variant else ''}{at}{size}", model, args, kwargs)


def _size(text: str) -> tuple[int, int]:
    """Batch and length from ``8x128``."""
    batch, _, seq = text.partition("x")
    if not (batch.isdigit() and seq.isdigit() and int(batch) and int(seq)):
        raise ModelError(f"{text!r} is not a size: say zoo:NAME@8x128 for batch 8 and length 128")
    return int(batch), int(seq)


def _split(spec: str) -> tuple[str, str]:
    """The file or module, and the function."""
    source, _, function = spec.rpartition(":")
    if not source or (function and not function.isidentifier()):
        source, function = spec, DEFAULT_FUNCTION
    if not source or source.isspace():
        raise ModelError(f"a model is given as {_FORMS}; got {spec!r}")
    return source, function or DEFAULT_FUNCTION


def import_source(source: str) -> ModuleType:
    """Import ``path.py`` or ``package.module``, as a command line names it.

    Raises:
        ModelError: there is no such file, or it is not the name of a module.
        UserCodeError: importing it raised.
    """
    if source.endswith(".py") or os.sep in source:
        return _import_file(Path(source))
    # As `python -m` does: modules of the folder that the command is run in can be named.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    hint = f"; did you mean zoo:{source}?" if source in ZOO else ""
    if not all(part.isidentifier() for part in source.split(".")):
        raise ModelError(f"a model is given as {_FORMS}; got {source!r}{hint}")
    try:
        known = importlib.util.find_spec(source.partition(".")[0]) is not None
    except (ImportError, ValueError):  # it is there, and is no module that could be found again
        known = True
    if not known:
        raise ModelError(f"there is no module {source}{hint or f': a model is given as {_FORMS}'}")
    imported: ModuleType = _run_user_code(lambda: importlib.import_module(source))
    return imported


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # As for a script: the files beside it can be imported, and classes in it found by their module's name.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[path.stem] = module
    loader = spec.loader
    _run_user_code(lambda: loader.exec_module(module))
    return module


def _function(module: ModuleType, name: str, spec: str) -> Callable[[], Any]:
    found = getattr(module, name, None)
    if not callable(found):
        raise ModelError(f"{module.__name__} has no function {name}, which {spec} names")
    function: Callable[[], Any] = found
    return function


def _checked(spec: str, made: Any) -> Model:
    promise = "it must return (model, args) or (model, args, kwargs)"
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not callable(made[0]):
        raise ModelError(f"{spec} returned a {type(made).__name__}: {promise}")
    model, args, kwargs = made if len(made) == 3 else (*made, {})
    if isinstance(args, torch.Tensor):
        args = (args,)
    if not isinstance(args, tuple | list) or not isinstance(kwargs, Mapping):
        raise ModelError(f"{spec} returned args as {type(args).__name__}, kwargs as {type(kwargs).__name__}: {promise}")
    return Model(spec, model, tuple(args), dict(kwargs))


def _run_user_code(code: Callable[[], Any]) -> Any:
    """Run code that is not ours.

    Raises:
        UserCodeError: it raised; the text is its traceback without the frames of ours that led to it.
    """
    try:
        return code()
    except (Exception, SystemExit) as error:
        frames = _theirs(error.__traceback__)
        raise UserCodeError("".join(traceback.format_exception(type(error), error, frames)).rstrip()) from None


def _theirs(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None and _ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return frames


def _ours(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<frozen importlib") or Path(filename).parent.name == "importlib"
