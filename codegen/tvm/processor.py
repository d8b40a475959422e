"""What LLVM knows of this machine's processor: the name to compile for, and the features that are really there."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache

from ..processor import Processor
from .child import can_start, command, environment
from .loading import load_tvm
from .native import global_function, load_libraries
from .service import service

# The features that generated code may use by itself: vectors and bit manipulation. Others that a name implies, such as
# wbnoinvd, are often hidden by a hypervisor and never generated.
_GENERATED = ("sse", "ssse", "avx", "fma", "f16c", "bmi", "amx", "gfni", "vaes", "vpclmul", "lzcnt", "popcnt", "movbe")
PATIENCE = 30.0  # seconds for another process to answer
_GENERIC = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "x86-64")


@lru_cache(maxsize=1)
def host_processor() -> Processor:
    """This machine's processor.

    A virtual machine may hide features that the processor's name stands for, AVX-512 for one. Code for that name would
    end in an illegal instruction, so the widest generic processor takes its place that has nothing hidden.

    Where TVM's package was not imported yet, another process is asked, which takes half the time of the import: the one
    that compiles kernels, if it was started for that too, or else one that is started here, or was by :func:`ask`.
    """
    answer = _read(service().processor()) or _answer()
    if answer is None:
        load_tvm()
    return answer or _found()


@lru_cache(maxsize=1)
def ask() -> subprocess.Popen[bytes] | None:
    """Start the process that :func:`host_processor` asks; None where there is none."""
    if "tvm" in sys.modules or not can_start():
        return None
    try:
        quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
        return subprocess.Popen(command(__name__), stdin=quiet, stdout=pipe, stderr=quiet, env=environment())
    except OSError:
        return None


def _answer() -> Processor | None:
    """What another process finds; None where there is none, or it fails."""
    process = ask()
    if process is None or process.returncode is not None:
        return None
    try:
        found = _read(process.communicate(timeout=PATIENCE)[0])
    except subprocess.TimeoutExpired:
        found = None
    if found is None:
        process.kill()
        process.communicate()
    return found


def _read(line: bytes) -> Processor | None:
    """What another process said; None where that is nothing, or no processor."""
    try:
        name, features = json.loads(line)
        return Processor(str(name), tuple(map(str, features)))
    except (ValueError, TypeError):
        return None


def told() -> str:
    """This machine's processor as JSON, found with TVM's libraries, which are loaded, and without its package.

    The objects that they give are then of classes that TVM's package cannot replace by its own: the process must end.
    """
    sys.modules["tvm"] = None  # type: ignore[assignment]  # `load_tvm` does nothing
    return json.dumps(_found())


def main() -> None:
    """Print it."""
    load_libraries()
    sys.stdout.write(told())


def _found() -> Processor:
    name = host_name()
    present = _host_features()
    if not present:
        return Processor(name, _implied(name))
    fitting = (name, *(generic for generic in _GENERIC if generic != name))
    chosen = next((n for n in fitting if _generated(_implied(n)) <= present), "generic")
    return Processor(chosen, tuple(sorted(present & set(_implied(chosen)))))


def host_name() -> str:
    """LLVM's name of this machine's processor, which is had without TVM's Python package."""
    return str(global_function("tvm.codegen.llvm.GetHostCPUName")())


# What follows makes objects of TVM's, of which the package must have registered the classes: `load_tvm` comes first.


def _host_features() -> set[str]:
    found = global_function("tvm.codegen.llvm.GetHostCPUFeatures")()
    # numbers of TVM's are true as objects where its package is not there to say what they are
    return {str(name) for name, there in found.items() if getattr(there, "value", there)} if found else set()


def _implied(name: str) -> tuple[str, ...]:
    load_tvm()
    target = global_function("target.Target")({"kind": "llvm", "mcpu": name})
    return tuple(sorted(str(feature) for feature in global_function("target.llvm_get_cpu_features")(target)))


def _generated(features: tuple[str, ...]) -> set[str]:
    return {feature for feature in features if feature.startswith(_GENERATED)}


def features_of(name: str) -> tuple[str, ...]:
    """What the processor of that name has, under LLVM's names, in order of the alphabet; () where LLVM knows none."""
    load_tvm()
    triple = str(global_function("tvm.codegen.llvm.GetDefaultTargetTriple")())
    return _implied(name) if bool(global_function("target.llvm_is_valid_cpu")(name, triple)) else ()


def needed(features: tuple[str, ...]) -> set[str]:
    """Those of some features that generated code may use by itself."""
    return _generated(features)
