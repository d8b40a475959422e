"""The direction of imports: tools -> runtime -> {frontend, rewrites, codegen} -> ir.

Imports are read from the syntax tree, wherever they stand: in functions and under TYPE_CHECKING too. Where a backend is
loaded by name, `import_module` and `__import__` with a literal name count as imports.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "smelt"

# What the modules of each layer may import besides their own layer. The empty name is the root: the public API.
BELOW = {
    "": {"tools", "runtime", "frontend", "rewrites", "codegen", "ir"},
    "tools": {"", "runtime", "frontend", "rewrites", "codegen", "ir"},
    "runtime": {"frontend", "rewrites", "codegen", "ir"},
    "frontend": {"ir"},
    "rewrites": {"ir"},
    "codegen": {"ir"},
    "ir": set(),
    # A leaf that every layer may read.
    "_version": set(),
}

# The only subpackage that may import each backend's packages; neither subpackage may import the other.
BACKENDS = {"tvm": "codegen.tvm", "tvm_ffi": "codegen.tvm", "triton": "codegen.triton"}


@dataclass(frozen=True)
class Import:
    """An import as it stands in the source: `target` is the absolute dotted name."""

    module: str
    line: int
    target: str


def source_files(root: Path) -> Iterator[tuple[str, Path]]:
    """The package's modules as (dotted name below the package, file)."""
    files = [*root.glob("*.py"), *(path for layer in BELOW if layer for path in (root / layer).rglob("*.py"))]
    for path in sorted(files):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts), path


def read_imports(module: str, source: str) -> Iterator[Import]:
    """Every import in the source of a module, given its dotted name below the package."""
    package = [PACKAGE, *module.split(".")][:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *([node.module] if node.module else [])]
            targets = [".".join([*stem, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Call):
            targets = dynamic_import(node, package)
        else:
            continue
        yield from (Import(module, node.lineno, target) for target in targets)


def dynamic_import(call: ast.Call, package: list[str]) -> list[str]:
    """The module that `import_module("x")` or `__import__("x")` names, where the name is a literal."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if called not in {"import_module", "__import__"} or not call.args:
        return []
    name = call.args[0]
    if not isinstance(name, ast.Constant) or not isinstance(name.value, str):
        return []
    stripped = name.value.lstrip(".")
    level = len(name.value) - len(stripped)
    base = package[: len(package) - level + 1] if level else []
    return [".".join([*base, stripped])]


def layer_of(name: str) -> str:
    """The layer of a dotted name below the package: its first part, or the root for the names of `__init__`."""
    first = name.split(".")[0]
    return first if first in BELOW else ""


def below_package(target: str) -> str | None:
    """The part of an absolute dotted name below the package, or None for another package's."""
    first, _, rest = target.partition(".")
    return rest if first == PACKAGE else None


def within(name: str, package: str) -> bool:
    """Whether a dotted name is a package or lies inside it."""
    return name == package or name.startswith(package + ".")


def fault(imported: Import) -> str | None:
    """What is wrong with an import, or None."""
    name = below_package(imported.target)
    if name is None:
        home = BACKENDS.get(imported.target.split(".")[0])
        return f"only {home} may" if home and not within(imported.module, home) else None
    backends = set(BACKENDS.values())
    for home in backends:
        if within(name, home) and any(within(imported.module, other) for other in backends - {home}):
            return "the backends do not know each other"
    importer, target = layer_of(imported.module), layer_of(name)
    if target in {importer, "_version"} or target in BELOW[importer]:
        return None
    return f"{importer} lies below {target or 'the root'}, or beside it"


def faults(root: Path) -> list[str]:
    """Every forbidden import in the package at root, as `module:line imports target: reason`."""
    found = []
    for module, path in source_files(root):
        for imported in read_imports(module, path.read_text(encoding="utf-8")):
            reason = fault(imported)
            if reason is not None:
                found.append(f"{module}:{imported.line} imports {imported.target}: {reason}")
    return found


def test_the_package() -> None:
    assert faults(ROOT) == []


def test_every_folder_with_code_is_a_layer() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == {layer for layer in BELOW if layer and not layer.startswith("_")}


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return folder


ALLOWED = {
    "__init__.py": "from .runtime.compile import compile\nfrom ._version import __version__\n",
    "_version.py": "import tomllib\n",
    "tools/cli.py": "import smelt\nfrom .. import compile\nfrom . import zoo\nfrom ..runtime.target import Target\n",
    "runtime/compile.py": "from .. import ir\nfrom ..frontend import export\nfrom .._version import __version__\n",
    "frontend/export.py": "from ..ir.graph import Graph\nimport torch\n",
    "codegen/tvm/emit.py": "import tvm\nfrom tvm.script import tirx\nfrom ..program import Program\n",
    "codegen/triton/emit.py": "import triton.language as tl\n",
    "ir/graph.py": "from .node import Node\nimport smelt.ir.types\n",
}


def test_allowed_imports_pass(tmp_path: Path) -> None:
    assert faults(tree(tmp_path, ALLOWED)) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ir/graph.py", "from ..frontend.export import capture"),
        ("ir/graph.py", "import smelt"),
        ("ir/graph.py", "from smelt import compile"),
        ("ir/ops/math.py", "from ...codegen import cost"),
        ("frontend/export.py", "from ..rewrites.rule import Rule"),
        ("frontend/export.py", "from .. import codegen"),
        ("rewrites/rule.py", "import smelt.codegen.cost"),
        ("rewrites/rules/norm.py", "from ...frontend import aten"),
        ("codegen/lower.py", "from ..rewrites import fusion"),
        ("codegen/__init__.py", "from ..runtime import arena"),
        ("runtime/compile.py", "def run():\n    from ..tools import zoo\n"),
        ("runtime/compile.py", "if TYPE_CHECKING:\n    from .. import CompiledModule\n"),
        ("runtime/compile.py", "from importlib import import_module\nimport_module('..tools.zoo', __package__)\n"),
        ("runtime/target.py", "def probe():\n    import tvm\n"),
        ("runtime/target.py", "importlib.import_module('triton.language')"),
        ("codegen/lower.py", "from tvm import tir"),
        ("codegen/tvm/emit.py", "import triton"),
        ("codegen/tvm/emit.py", "from ..triton import emit"),
        ("codegen/triton/emit.py", "from smelt.codegen.tvm import emit"),
        ("tools/env.py", "import tvm_ffi"),
        ("_version.py", "from .ir import graph"),
    ],
)
def test_forbidden_import_is_found(tmp_path: Path, name: str, source: str) -> None:
    found = faults(tree(tmp_path, ALLOWED | {name: source}))
    assert len(found) == 1, found
    assert found[0].startswith(name.removesuffix(".py").replace("/", ".") + ":")
