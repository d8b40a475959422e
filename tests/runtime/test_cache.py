"""The kernel cache: entries come back whole or not at all, and nothing that goes wrong stops a compilation."""

import errno
import json
import os
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smelt.ir.errors import CacheError
from smelt.runtime import cache as cache_module
from smelt.runtime.cache import CacheWarning, KernelCache, default_folder, default_limit
from smelt.runtime.manifest import digest_of

ROOT = Path(__file__).resolve().parents[2]
KEY = "0" * 64
OTHER = "1" * 64
CONTENT = b"\x7fELF" + bytes(range(256)) * 4


def writer(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


@pytest.fixture(autouse=True)
def linker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests link nothing, so that they run on a machine without a linker too."""
    monkeypatch.setattr(cache_module, "find_linker", lambda: "cc")


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path / "cache", grace=0)


@pytest.fixture
def kept(cache: KernelCache) -> Path:
    """The library of KEY, in the cache."""
    path = cache.put(KEY, writer(CONTENT))
    assert path is not None
    return path


def leftovers(cache: KernelCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir() if path.name.startswith(".new-")}


# --- the plain way ----------------------------------------------------------------------------------------------------


def test_nothing_is_found_in_an_empty_cache(cache: KernelCache) -> None:
    assert cache.get(KEY) is None
    assert (cache.hits, cache.misses) == (0, 1)


def test_what_was_put_is_found(cache: KernelCache, kept: Path) -> None:
    assert cache.get(KEY) == kept
    assert kept.read_bytes() == CONTENT
    assert kept.suffix == ".so"
    assert cache.get(OTHER) is None
    assert (cache.hits, cache.misses) == (1, 1)
    assert not leftovers(cache)


def test_another_cache_on_the_same_folder_finds_it(cache: KernelCache, kept: Path) -> None:
    assert KernelCache(cache.folder).get(KEY) == kept


def test_an_entry_is_replaced(cache: KernelCache, kept: Path) -> None:
    replaced = cache.put(KEY, writer(b"new"))
    assert replaced is not None
    assert replaced != kept
    assert cache.get(KEY) == replaced
    assert replaced.read_bytes() == b"new"


def test_the_folder_is_its_owners_only(cache: KernelCache, kept: Path) -> None:
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


def test_no_file_is_a_pickle(cache: KernelCache, kept: Path) -> None:
    names = {path.name for path in cache.folder.iterdir()} - {".lock"}
    assert names == {f"{KEY}.json", kept.name}
    manifest = json.loads((cache.folder / f"{KEY}.json").read_text())
    assert manifest == {
        "format": 1,
        "key": KEY,
        "library": kept.name,
        "size": len(CONTENT),
        "sha256": digest_of(kept),
    }


@pytest.mark.parametrize("key", ["", "abc", "../" + "0" * 61, "G" * 64, KEY + "0"])
def test_a_key_is_a_digest(cache: KernelCache, key: str) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        cache.get(key)
    with pytest.raises(ValueError, match="SHA-256"):
        cache.put(key, writer(CONTENT))


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMELT_CACHE_DIR", str(tmp_path / "mine"))
    assert KernelCache().folder == tmp_path / "mine"
    monkeypatch.delenv("SMELT_CACHE_DIR")
    assert default_folder().name == "smelt"


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("1K", 1 << 10), ("500M", 500 << 20), ("2 GiB", 2 << 30), ("1tb", 1 << 40), ("", 2 << 30)],
)
def test_the_limit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("SMELT_CACHE_LIMIT", text)
    assert default_limit() == size


def test_a_limit_that_is_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMELT_CACHE_LIMIT", "plenty")
    with pytest.warns(CacheWarning, match="500M or 2G"):
        assert default_limit() == 2 << 30


# --- damage -----------------------------------------------------------------------------------------------------------


def assert_damaged_then_replaced(cache: KernelCache) -> None:
    with pytest.warns(CacheWarning, match="damaged") as said:
        found = [cache.get(KEY) for _ in range(2)]
    assert found == [None, None]
    assert len(said) == 1
    assert cache.put(KEY, writer(CONTENT)) is not None
    replaced = cache.get(KEY)
    assert replaced is not None
    assert replaced.read_bytes() == CONTENT


@pytest.mark.parametrize("size", [0, 1, len(CONTENT) - 1])
def test_a_truncated_library(cache: KernelCache, kept: Path, size: int) -> None:
    os.truncate(kept, size)
    assert_damaged_then_replaced(cache)


def test_a_longer_library(cache: KernelCache, kept: Path) -> None:
    kept.write_bytes(CONTENT + b"\0")
    assert_damaged_then_replaced(cache)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 8 * len(CONTENT) - 1))
def test_any_flipped_bit_of_a_library(tmp_path: Path, position: int) -> None:
    cache = KernelCache(tmp_path / str(position))
    kept = cache.put(KEY, writer(CONTENT))
    assert kept is not None
    damaged = bytearray(CONTENT)
    damaged[position // 8] ^= 1 << position % 8
    kept.write_bytes(damaged)
    with pytest.warns(CacheWarning, match="digest"):
        assert cache.get(KEY) is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_to_a_manifest(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever became of the manifest, what is returned is the library that was put, or nothing."""
    cache = KernelCache(tmp_path / os.urandom(8).hex())
    assert cache.put(KEY, writer(CONTENT)) is not None
    path = cache.folder / f"{KEY}.json"
    text = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    text[start:end] = data.draw(st.binary(max_size=8))
    path.write_bytes(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        found = cache.get(KEY)
    assert found is None or found.read_bytes() == CONTENT


def test_swapped_manifests(cache: KernelCache, kept: Path) -> None:
    cache.put(OTHER, writer(b"other"))
    mine, others = cache.folder / f"{KEY}.json", cache.folder / f"{OTHER}.json"
    text = mine.read_text()
    mine.write_text(others.read_text())
    others.write_text(text)
    with pytest.warns(CacheWarning, match="another entry") as said:
        found = [cache.get(each) for each in (KEY, OTHER)]
    assert found == [None, None]
    assert len(said) == 2


def test_swapped_libraries(cache: KernelCache, kept: Path) -> None:
    other = cache.put(OTHER, writer(b"other"))
    assert other is not None
    kept.write_bytes(b"other")
    other.write_bytes(CONTENT)
    with pytest.warns(CacheWarning, match="size"):
        assert cache.get(KEY) is None
    with pytest.warns(CacheWarning, match="size"):
        assert cache.get(OTHER) is None


def test_a_missing_library(cache: KernelCache, kept: Path) -> None:
    kept.unlink()
    assert_damaged_then_replaced(cache)


def test_a_library_that_is_a_folder(cache: KernelCache, kept: Path) -> None:
    kept.unlink()
    kept.mkdir()
    with pytest.warns(CacheWarning, match="damaged"):
        assert cache.get(KEY) is None
    with pytest.warns(CacheWarning, match="cannot be kept"):
        assert cache.put(KEY, writer(CONTENT)) is None


def test_a_manifest_does_not_name_a_file_elsewhere(cache: KernelCache, kept: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.so"
    outside.write_bytes(CONTENT)
    path = cache.folder / f"{KEY}.json"
    for name in ("../outside.so", str(outside)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"library": name}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheWarning)
            assert cache.get(KEY) is None


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"format": "1"}'])
def test_a_manifest_that_is_none(cache: KernelCache, kept: Path, text: bytes) -> None:
    (cache.folder / f"{KEY}.json").write_bytes(text)
    assert_damaged_then_replaced(cache)


def test_an_entry_of_another_format_is_a_miss(cache: KernelCache, kept: Path) -> None:
    path = cache.folder / f"{KEY}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    assert cache.get(KEY) is None


# --- a folder that cannot be used -------------------------------------------------------------------------------------


def assert_works_without(cache: KernelCache, match: str) -> None:
    with pytest.raises(CacheError, match=match):
        cache.check()
    with pytest.warns(CacheWarning, match=match) as said:
        found = [cache.get(KEY), cache.put(KEY, writer(CONTENT)), cache.get(KEY)]
    assert found == [None, None, None]
    assert len(said) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_works_without(KernelCache(tmp_path / "file" / "cache"), "cannot be made")


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_works_without(KernelCache(tmp_path / "file"), "cannot be made|not a folder")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_to(tmp_path: Path, mode: int) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    assert_works_without(KernelCache(tmp_path / "cache"), "chmod 700")


def test_a_folder_of_another_user(cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.folder.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: cache.folder.stat().st_uid + 1)
    assert_works_without(cache, "another user")


def refuse(error: int) -> Callable[..., NoReturn]:
    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        raise OSError(error, os.strerror(error))

    return fail


def assert_put_fails(cache: KernelCache, build: Callable[[Path], Any] | None = None) -> None:
    build = build or writer(CONTENT)
    with pytest.warns(CacheWarning, match="cannot be kept") as said:
        found = [cache.put(each, build) for each in (KEY, OTHER)]
    assert found == [None, None]
    assert len(said) == 1
    assert not leftovers(cache)
    assert cache.get(KEY) is None


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
def test_a_folder_that_is_read_only(cache: KernelCache, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    monkeypatch.setattr(cache_module.tempfile, "mkstemp", refuse(error))
    assert_put_fails(cache)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_write_permission(cache: KernelCache, kept: Path) -> None:
    cache.folder.chmod(0o500)
    assert cache.get(KEY) == kept
    with pytest.warns(CacheWarning, match="cannot be kept"):
        assert cache.put(OTHER, writer(CONTENT)) is None


def test_a_disk_that_is_full_when_the_library_is_built(cache: KernelCache) -> None:
    assert_put_fails(cache, refuse(errno.ENOSPC))


@pytest.mark.parametrize("call", [1, 2])
def test_a_disk_that_is_full_when_files_are_renamed(
    cache: KernelCache, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    replace, calls = os.replace, iter(range(1, 100))
    fail = refuse(errno.ENOSPC)
    monkeypatch.setattr(os, "replace", lambda *args: fail() if next(calls) >= call else replace(*args))
    assert_put_fails(cache)


FULL_DISK = """
import resource, sys, warnings
from smelt.runtime import cache as module
module.find_linker = lambda: "cc"
cache = module.KernelCache(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    kept = cache.put("0" * 64, lambda path: path.write_bytes(bytes(5000)))
print(kept, [w.category.__name__ for w in said], cache.get("0" * 64))
"""


def test_a_disk_that_really_takes_no_more(tmp_path: Path) -> None:
    assert run_python(FULL_DISK, str(tmp_path / "cache")) == "None ['CacheWarning'] None"
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name != ".lock"] == []


def test_a_linker_that_fails(cache: KernelCache) -> None:
    def build(path: Path) -> None:
        raise RuntimeError("Compilation error:\nld: cannot find crti.o")

    assert_put_fails(cache, build)


def test_no_linker_is_said_once_and_nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "find_linker", lambda: None)
    monkeypatch.setattr(cache_module, "_said", set())
    build = pytest.fail
    with pytest.warns(CacheWarning, match="install gcc or clang") as said:
        found = [KernelCache(tmp_path / name).put(KEY, build) for name in ("one", "two")]
    assert found == [None, None]
    assert len(said) == 1


# --- room -------------------------------------------------------------------------------------------------------------


def key(number: int) -> str:
    return f"{number:064x}"


def age(cache: KernelCache, number: int, seconds: float) -> None:
    path = cache.get(key(number))
    assert path is not None
    then = time.time() - seconds
    for file in (path, cache.folder / f"{key(number)}.json"):
        os.utime(file, (then, then))


def present(cache: KernelCache, count: int) -> list[int]:
    return [n for n in range(count) if (cache.folder / f"{key(n)}.json").exists()]


def test_the_least_recently_used_entry_goes_first(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path / "cache", limit=10_000, grace=0)
    for number in range(3):
        assert cache.put(key(number), writer(bytes(3000))) is not None
        age(cache, number, 100 - number)
    age(cache, 0, 1)  # used again
    assert cache.put(key(3), writer(bytes(3000))) is not None
    assert present(cache, 4) == [0, 2, 3]
    assert cache.size() <= 10_000
    assert cache.get(key(1)) is None


def test_an_entry_in_use_is_kept_over_the_limit(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path / "cache", limit=5000, grace=60)
    for number in range(3):
        assert cache.put(key(number), writer(bytes(3000))) is not None
    assert present(cache, 3) == [0, 1, 2]


def test_an_entry_above_the_limit_is_not_kept(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path / "cache", limit=100, grace=0)
    with pytest.warns(CacheWarning, match="limit"):
        assert cache.put(KEY, writer(bytes(101))) is None
    assert cache.size() == 0


def test_a_folder_of_many_files_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the lock, for which others wait at most ten seconds: it was listed once for each entry."""
    cache = KernelCache(tmp_path / "cache", grace=0)
    for number in range(20):
        assert cache.put(key(number), writer(CONTENT)) is not None
    listed: list[int] = []
    files = cache._files
    monkeypatch.setattr(cache, "_files", lambda: (listed.append(1), files())[1])
    assert cache.put(key(20), writer(CONTENT)) is not None
    assert len(listed) == 1
    assert present(cache, 21) == list(range(21))


def test_entries_go_until_the_limit_is_kept(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path / "cache", limit=10**9, grace=0)
    for number in range(6):
        assert cache.put(key(number), writer(bytes(3000))) is not None
        age(cache, number, 100 - number)
    assert cache.put(key(6), writer(bytes(3000))) is not None
    smaller = KernelCache(tmp_path / "cache", limit=10_000, grace=0)
    assert smaller.put(key(7), writer(bytes(3000))) is not None
    assert smaller.size() <= 10_000
    assert present(smaller, 8) == [5, 6, 7]


def test_what_crashed_processes_left_is_removed(cache: KernelCache, kept: Path) -> None:
    for name in (".new-abc.so", ".new-abc.json", "0123-orphan.so", f"{OTHER}.json"):
        (cache.folder / name).write_bytes(b"left over")
    assert cache.put(key(7), writer(CONTENT)) is not None
    names = {path.suffix for path in cache.folder.iterdir()}
    assert names <= {".so", ".json", "", ".lock"}
    assert present(cache, 8) == [0, 7]
    assert len(list(cache.folder.glob("*.so"))) == 2
    assert cache.get(KEY) == kept


# --- several at once --------------------------------------------------------------------------------------------------


def run_python(code: str, *args: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / ".typecheck")}
    done = subprocess.run([sys.executable, "-c", code, *args], env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


TWO_PROCESSES = """
import sys, warnings
from smelt.runtime import cache as module
warnings.simplefilter("error")
module.find_linker = lambda: "cc"
cache = module.KernelCache(sys.argv[1], limit=40_000, grace=5)
for round in range(15):
    for number in range(5):
        key, content = f"{number:064x}", sys.argv[2].encode() * (1000 + number)
        found = cache.get(key)
        if found is not None:
            data = found.read_bytes()
            assert len(data) == 1000 + number and len(set(data)) == 1, (number, len(data))
        assert cache.put(key, lambda path: path.write_bytes(content)) is not None
print("done")
"""


def test_two_processes_at_once(tmp_path: Path) -> None:
    outputs: list[str] = []
    threads = [
        threading.Thread(target=lambda name=name: outputs.append(run_python(TWO_PROCESSES, str(tmp_path / "c"), name)))
        for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == ["done", "done"]
    cache = KernelCache(tmp_path / "c")
    for number in range(5):
        assert cache.get(key(number)) is not None


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cache_module, "LOCK_SECONDS", 0.05)
    return


@pytest.mark.usefixtures("short_wait")
def test_a_process_that_never_lets_go(cache: KernelCache, kept: Path) -> None:
    with cache_module.FileLock(str(cache.folder / ".lock")):
        with pytest.warns(CacheWarning, match="another process"):
            assert cache.put(OTHER, writer(CONTENT)) is None
        assert cache.get(KEY) == kept
    assert cache.put(OTHER, writer(CONTENT)) is not None
