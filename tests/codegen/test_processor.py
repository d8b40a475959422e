"""The processor that code is generated for: never with features that the machine hides."""

import platform
from collections.abc import Iterator

import pytest

processor = pytest.importorskip("smelt.codegen.tvm.processor")


@pytest.fixture(autouse=True)
def uncached() -> Iterator[None]:
    processor.host_processor.cache_clear()
    yield
    processor.host_processor.cache_clear()


def test_the_features_of_this_machine_are_there() -> None:
    found = processor.host_processor()
    present = processor._host_features()
    assert found.name
    assert list(found.features) == sorted(found.features)
    assert not present or set(found.features) <= present
    assert processor._generated(processor._implied(found.name)) <= (present or set(found.features))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="about x86")
@pytest.mark.parametrize(
    ("hidden", "name"),
    [("avx512", "x86-64-v3"), ("avx", "x86-64-v2")],
)
def test_a_hidden_feature_is_not_generated(hidden: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = set(processor._implied("x86-64-v4"))
    wide = {f for f in everything if not f.startswith((hidden, "fma", "f16c") if hidden == "avx" else hidden)}
    monkeypatch.setattr(processor, "_host_features", lambda: wide)
    found = processor.host_processor()
    assert found.name == name
    assert not any(feature.startswith(hidden) for feature in found.features)
