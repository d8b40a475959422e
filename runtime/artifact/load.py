"""``smelt.load``: an artifact made ready to be called, without the model's code and without a compiler."""

from __future__ import annotations

import os

import torch

from ...ir.collection import no_collection
from ...ir.errors import ArtifactError
from ..cuda.history import MOST_GRAPHS
from ..cuda.target import OLDEST
from .container import Container
from .loaded import LoadedArtifact
from .loader import Loader
from .manifest import Manifest, read_manifest
from .targets import GpuTargetRecord, threads_of


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    target: str = "auto",
    threads: int | None = None,
    digest: str | None = None,
    verify_weights: bool = True,
    recompile: bool = True,
    graphs: int = MOST_GRAPHS,
) -> LoadedArtifact:
    """Load what ``smelt.export(...).save(path)`` wrote.

    The file holds machine code. All of it is checked against the digests in its manifest, which finds damage; to be
    sure that it is the file that you made, give the ``digest`` that ``save`` returned.

    Args:
        path: the artifact. It is mapped into memory: replace it by renaming while it is loaded, never in place.
        device: where it runs: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``. None is PyTorch's current GPU where there is one
            of compute capability 8.0 or later and the file has kernels for GPUs, and the processor elsewhere.
        target: ``"auto"`` takes the kernels that fit the device best, and compiles where none do; the name of one
            of the artifact's targets takes those; ``"compile"`` compiles, and runs no machine code of the file's.
        threads: how many threads kernels may use; by default all cores that this process may run on.
        digest: the SHA-256 of the manifest, in hexadecimal.
        verify_weights: whether weights too are held to their digests. False saves time; everything else is always held.
        recompile: whether kernels are compiled where none of the file's fit; otherwise that is an ArtifactError.
        graphs: on a GPU, of how many kinds of calls of each entry point CUDA graphs are held.

    Raises:
        ArtifactError: the file is damaged, no artifact, not the one of ``digest``, or has no such target, or none that
            fits while ``recompile`` is off.
        BackendError: there is no such GPU; its driver refuses the machine code; the package that runs kernels, or the
            compiler where one is needed, is not installed.
        UnsupportedError: there is no such device.
        ValueError: the number of threads is not positive, or that of graphs is negative.
    """
    number, where = threads_of(threads), None if device is None else str(device)
    if isinstance(graphs, bool) or not isinstance(graphs, int) or graphs < 0:
        raise ValueError(f"graphs is {graphs!r}: give a whole number from 0")
    container = Container(path)
    try:
        if digest is not None and str(digest).lower() != container.digest:
            raise ArtifactError(f"{container.path} has the digest {container.digest}, not {digest}")
        # what is made outlives the call
        with torch.inference_mode(False), torch.device("cpu"), no_collection():
            return _loader(container, where, (target, number, verify_weights, recompile), graphs).run()
    finally:
        container.close()


def _loader(container: Container, device: str | None, how: tuple[str, int, bool, bool], graphs: int) -> Loader:
    """What loads the file on a device."""
    manifest = read_manifest(container)
    wanted = wanted_gpu(manifest, device, how[0])
    if wanted is not None:
        # only who has a GPU needs them
        from .gpu_load import GpuLoader, find_gpu

        loader = GpuLoader(container, manifest, *how)
        loader.gpu, loader.graphs = find_gpu(wanted), graphs
        return loader
    return Loader(container, manifest, *how)


def wanted_gpu(manifest: Manifest, device: str | None, asked: str) -> str | None:
    """Which GPU a file is loaded on, as PyTorch calls it; None for the CPU.

    Raises:
        ArtifactError: the target that is asked for is not one of the device.
    """
    gpus = {record.name for record in manifest.targets if isinstance(record, GpuTargetRecord)}
    others = {record.name for record in manifest.targets} - gpus
    if device is None:
        there = bool(gpus) and asked not in others and (asked in gpus or _has_gpu())
        return "cuda" if there else None
    if device != "cpu" and asked in others:
        raise ArtifactError(f"the target {asked!r} is for processors, and the device is {device!r}: say which you want")
    if device == "cpu" and asked in gpus:
        raise ArtifactError(f"the target {asked!r} is for GPUs, and the device is {device!r}: say which you want")
    return None if device == "cpu" else device


def _has_gpu() -> bool:
    """Whether PyTorch's current GPU is one that kernels can be made for."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return False
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor >= OLDEST
