"""What LLVM knows of this machine's processor: the name to compile for, and the features that are really there."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .loading import load_tvm
from .native import global_function

# The features that generated code may use by itself: vectors and bit manipulation. Others that a name implies, such as
# wbnoinvd, are often hidden by a hypervisor and never generated.
_GENERATED = ("sse", "ssse", "avx", "fma", "f16c", "bmi", "amx", "gfni", "vaes", "vpclmul", "lzcnt", "popcnt", "movbe")
_GENERIC = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "x86-64")


class Processor(NamedTuple):
    """A processor as code is generated for it: LLVM's name, and the features in order of the alphabet."""

    name: str
    features: tuple[str, ...]


@lru_cache(maxsize=1)
def host_processor() -> Processor:
    """This machine's processor.

    A virtual machine may hide features that the processor's name stands for, AVX-512 for one. Code for that name would
    end in an illegal instruction, so the widest generic processor takes its place that has nothing hidden.
    """
    load_tvm()
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
    return {str(name) for name, there in found.items() if bool(there)} if found else set()


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
