"""The command ``smelt``. One module for each command, loaded when it is run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..ir.errors import SmeltError, VerifyError
from .console import err, fail
from .errors import UserCodeError

# Commands import what they need when they are run: PyTorch alone takes seconds, and `smelt --help` needs none of it.


class Commands(TyperGroup):
    """Ends a command that raised one of our errors with that error's message, and with exit code 1 or 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except SmeltError as error:
            if isinstance(error, UserCodeError):
                err().print(str(error), markup=False, soft_wrap=True)
            else:
                fail(str(error))
            found = ctx.invoked_subcommand not in _FINDING or isinstance(error, VerifyError)
            ctx.exit(1 if found else 2)


# Commands whose exit code 1 says that they found a fault: where they could not look for one it is 2.
_FINDING = ("bisect", "verify-rules", "verify", "compile-check", "fuzz", "tune", "coverage", "opinfo")

app = typer.Typer(
    cls=Commands,
    help="Compile PyTorch Transformers for inference: a graph in, a small set of fused kernels out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="zoo:NAME, zoo:NAME:tiny, path.py:make_model or package.module:make_model; make_model() returns "
        "(model, args) or (model, args, kwargs).",
        show_default=False,
    ),
]


def _json_only(context: typer.Context, asked: bool) -> bool:
    if asked:
        from .console import json_only

        context.with_resource(json_only())
    return asked


Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.", callback=_json_only)]


def _version(asked: bool) -> None:
    if asked:
        from .._version import __version__

        typer.echo(f"smelt {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Compile PyTorch Transformers for inference: a graph in, a small set of fused kernels out."""


@app.command()
def demo(
    model: Annotated[
        str | None,
        typer.Option(help="The name of a sentence model on the Hugging Face hub, or a folder that holds one."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for both; by default all usable cores.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the timing.")] = 9,
    as_json: Json = False,
) -> None:
    """Search real text with a pretrained model, compiled and not, and show what happened."""
    from .demo import demo as run

    run(model, threads, rounds, as_json)


@app.command("dump-ir")
def dump_ir(
    model: ModelArgument,
    stage: Annotated[
        str | None, typer.Option(help="captured, the name of a pass, final, kernels or code.", show_default="final")
    ] = None,
    after: Annotated[str | None, typer.Option(metavar="PASS", help="The same as --stage PASS.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write every stage to this folder.")] = None,
    diff: Annotated[str | None, typer.Option(metavar="PASS", help="Show what one pass changed.")] = None,
    as_json: Json = False,
) -> None:
    """Show a model on its way: graphs after every pass, kernel programs, generated code."""
    ways = {"--stage": stage, "--after": after, "--out": out, "--diff": diff}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise typer.BadParameter(f"give one of {', '.join(given)}")
    from .dump_ir import dump_ir as run

    run(model, stage or after or "final", out, diff, as_json)


@app.command()
def bisect(
    model: ModelArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where to write the script that shows a fault.", show_default="smelt-fault.py"
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of kernels; by default all usable cores.")] = None,
    as_json: Json = False,
) -> None:
    """Find the first rewrite, fusion, placement or kernel that makes a model's result wrong; exit code 1 if any."""
    from .bisect import bisect as run

    raise typer.Exit(run(model, out, threads, as_json))


@app.command()
def explain(
    model: ModelArgument,
    why_not: Annotated[
        str | None, typer.Option(metavar="RULE", help="Show where this rule fired, where it nearly did, and why not.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time every kernel, and PyTorch's memory.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="A line for every call of a kernel and every refused fusion.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the roofline; needs matplotlib.")] = None,
    target: Annotated[
        str, typer.Option(help="auto, cpu or cuda; sm_80, sm_90 or sm_100 for a GPU that need not be there.")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Show a model's kernels against the machine's roofs, and the fusions that were refused."""
    from .explain import explain as run

    run(model, why_not, measure, everything, plot, as_json, target)


@app.command()
def zoo(as_json: Json = False) -> None:
    """List the built-in models."""
    from .list_zoo import list_zoo as run

    run(as_json)


@app.command()
def env(
    as_json: Json = False,
    measure: Annotated[bool, typer.Option(help="Measure what the machine reaches; some three seconds.")] = True,
) -> None:
    """Show versions, target, measured roofs and cache: what a bug report needs."""
    from .env import env as run

    run(as_json, measure)


@app.command()
def bench(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="As for dump-ir; zoo:NAME@8x128 for batch 8, length 128.")
    ],
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for all; by default all usable cores.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, in each of which everyone has a turn.")] = 15,
    peers: Annotated[
        str,
        typer.Option(help="Separated by commas: eager, inductor, inductor-max, onnxruntime, openvino."),
    ] = "eager,inductor",
    dtype: Annotated[
        str,
        typer.Option(help="f32 or bf16 for weights and inputs; int8, int4, fp8 or fp8-dynamic for what is quantised."),
    ] = "f32",
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Sizes, as b=1,4,16 s=32,128: one compiled model for all, and the worst ratio to a peer."),
    ] = None,
    starts: Annotated[
        int, typer.Option(min=0, help="Cold and warm starts of each in processes of their own, in turns; 0: none.")
    ] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write JSON to this file; - is standard output.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a roofline picture to this file.")] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Time generate with its caches, in ms a token: zoo:gpt2 and zoo:llama.")
    ] = False,
    tokens: Annotated[int, typer.Option(min=2, help="With --decode: how many tokens to generate.")] = 64,
    kv_cache_dtype: Annotated[
        str, typer.Option(help="With --decode: bfloat16 or int8, what smelt rounds keys and values to.")
    ] = "",
) -> None:
    """Time models against PyTorch eager, torch.compile, ONNX Runtime and OpenVINO, all in one interleaved run."""
    # read when PyTorch is loaded: threads of others that spin would slow down whoever has the next turn
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from .bench.command import bench as run

    run(
        models,
        threads=threads,
        rounds=rounds,
        peers=peers,
        starts=starts,
        dtype=dtype,
        sweep=sweep or (),
        json_file=json_file,
        picture=plot,
        decode=tokens if decode else 0,
        kv_cache_dtype=kv_cache_dtype,
    )


@app.command()
def tune(
    model: ModelArgument,
    budget: Annotated[str, typer.Option(help="How long, as 60s or 5m.")] = "60s",
    trials: Annotated[int, typer.Option(min=1, help="Schedules of one kernel at most.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Processes that build kernels; one at a time is timed.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of kernels; by default all usable cores.")] = None,
    search: Annotated[
        str, typer.Option(help="ranked: as a cost model says; optuna: as what was measured says.")
    ] = "ranked",
    resume: Annotated[bool, typer.Option("--resume", help="Leave out what was tuned and tried before.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Tune nothing; say what is stale, and end with 1 if any.")
    ] = False,
    lock: Annotated[bool, typer.Option("--lock", help="Pin the outcome in smelt.lock, which compile reads.")] = False,
    merge: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take over the records of another machine of this kind first.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find faster schedules for a model's kernels: each is checked, then timed, and wins by more than the noise."""
    from .tune import tune as run

    code = run(
        model,
        budget=budget,
        trials=trials,
        workers=workers,
        threads=threads,
        search=search,
        resume=resume,
        check=check,
        lock=lock,
        merge=merge,
        as_json=as_json,
    )
    if code:
        raise typer.Exit(code)


@app.command()
def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The artifact, such as bert.smelt.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="auto is this processor; x86-64-v3 any with AVX2, x86-64-v4 with AVX-512; sm_80, sm_90, sm_100 are "
            "GPUs. May be given again."
        ),
    ] = None,
    quantize: Annotated[str | None, typer.Option(help="int8-dynamic, int8, int4, fp8 or fp8-dynamic.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that kernels are made for.")] = None,
    as_json: Json = False,
) -> None:
    """Compile a model into one file, which smelt.load runs without the model's code and without a compiler."""
    from .artifact import export_model as run

    run(model, out, target or ("auto",), quantize, threads, as_json)


FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="What smelt export wrote.", show_default=False)]


@app.command()
def inspect(file: FileArgument, as_json: Json = False) -> None:
    """Show what an artifact holds, held to its digests; nothing in it is run."""
    from .artifact import inspect_file as run

    run(file, as_json)


@app.command()
def verify(
    file: FileArgument,
    against: Annotated[str, typer.Option(metavar="MODEL", help="What it was made of, as for dump-ir.")],
    entry_point: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which entry point, where several are.")
    ] = None,
    target: Annotated[str, typer.Option(help="Whose kernels: auto, a target of the file, or compile.")] = "auto",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:1; by default a GPU that the file has kernels for.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Hold an artifact's results to the model's own, by the numeric contract; exit code 1 where they break it."""
    from .artifact import verify_file as run

    run(file, against, entry_point, target, device, as_json)


@app.command()
def fuzz(
    n: Annotated[int, typer.Option("--n", min=1, help="How many programs.")] = 300,
    seed: Annotated[int, typer.Option(help="The seed; program number K of a seed is always the same.")] = 0,
    start: Annotated[int, typer.Option(min=0, help="The number of the first program: to go on after an end.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    interpret_only: Annotated[
        bool, typer.Option("--interpret-only", help="Interpret kernel programs and compile nothing: faster.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where failures go.", show_default="tests/golden/fuzz or smelt-fuzz"),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="For one program; more is a hang.")] = 60,
    as_json: Json = False,
) -> None:
    """Check random whole programs: eager, interpreter, unoptimised and optimised must agree. Failures are minimised."""
    from .fuzz.command import fuzz as run

    if run(n, seed, start, jobs, interpret_only, as_json, out, seconds):
        raise typer.Exit(1)


@app.command()
def opinfo(
    ops: Annotated[
        list[str] | None, typer.Argument(metavar="OP...", help="Names in PyTorch's database; all by default.")
    ] = None,
    dtypes: Annotated[
        str, typer.Option("--dtype", help="Separated by commas.")
    ] = "float32,bfloat16,float16,int64,bool",
    samples: Annotated[int, typer.Option(min=1, help="Of each operator and dtype at most.")] = 8,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Sizes symbolic, as smelt.compile has them.")] = False,
    edges: Annotated[bool, typer.Option("--edges", help="Samples with extreme values, infinities and NaN.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    interpret_only: Annotated[
        bool, typer.Option("--interpret-only", help="Interpret kernel programs and compile nothing: faster.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option(help="When to stop, as 60s or 5m; with --keep the next run goes on.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what is found, and leave out what this file holds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run PyTorch's own operator database through the backend: lowered, passed through or wrong."""
    from .opinfo.command import opinfo as run

    if run(
        ops or (),
        dtypes=dtypes,
        samples=samples,
        edges=edges,
        dynamic=dynamic,
        jobs=jobs,
        interpret_only=interpret_only,
        budget=budget,
        keep=keep,
        as_json=as_json,
    ):
        raise typer.Exit(1)


@app.command("compile-check")
def compile_check(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="As for `smelt dump-ir`; or say --zoo.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="sm_80, sm_90 (the default) or sm_100, several times for several.")
    ] = None,
    numbers: Annotated[
        list[str] | None,
        typer.Option("--dtype", help="f32, bf16 or f16, and after a + int8, int4, fp8, int8-dynamic or fp8-dynamic."),
    ] = None,
    zoo: Annotated[bool, typer.Option("--zoo", help="Every model of the zoo, a line for each.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="With --zoo, the tiny variants.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that compile.")] = 1,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --zoo, a JSON file: what it has is left out, the rest added."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the source of every kernel to this folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile kernels for a GPU and show what they take of it; exit code 1 if any cannot be compiled."""
    from .compile_check import ZOO_NUMBERS, How, compile_check_zoo
    from .compile_check import compile_check as run

    if zoo == (model is not None):
        raise typer.BadParameter("say either a model or --zoo")
    if not zoo and (tiny or keep is not None):
        raise typer.BadParameter("--tiny and --keep go with --zoo")
    if out is not None and (zoo or len(target or ()) > 1 or len(numbers or ()) > 1):
        raise typer.BadParameter("--out takes one model, one target and one --dtype")
    how = How(tuple(target or ("sm_90",)), tuple(numbers or (ZOO_NUMBERS if zoo else ("f32",))), jobs)
    failed = compile_check_zoo(how, tiny, as_json, keep) if model is None else run(model, how, out, as_json)
    if failed:
        raise typer.Exit(1)


@app.command()
def coverage(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="ARCHITECTURE...", help="By default all; --list names them.")
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Print the names and measure nothing.")] = False,
    operators: Annotated[
        bool,
        typer.Option("--opinfo", help="Operators in place of architectures, as `smelt opinfo` takes them."),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write JSON to this file, which keeps its other rows; - is standard output."
        ),
    ] = None,
) -> None:
    """Measure architectures: captured whole, fallbacks, errors, kernels a layer; exit code 1 if any is wrong."""
    if operators:
        if list_only or (json_file is not None and str(json_file) != "-"):
            raise typer.BadParameter("with --opinfo, say --json - or `smelt opinfo --keep FILE`")
        opinfo(names, as_json=json_file is not None)
        return
    from .coverage.command import coverage as run

    if not run(names or (), json_file, list_only):
        raise typer.Exit(1)


@app.command("verify-rules")
def verify_rules(
    rules: Annotated[
        list[str] | None, typer.Argument(metavar="RULE...", help="Names of rules; all of them by default.")
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="Random cases for each rule.")] = 200,
    seed: Annotated[int, typer.Option(help="What the cases are drawn from.")] = 0,
    module: Annotated[
        list[str] | None,
        typer.Option(help="path.py or package.module that registers rules of its own; may be given again."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Certify the rewrite rules: prove them, evaluate them exactly, and try them on random cases."""
    from .verify_rules import verify_rules as run

    run(rules or (), module or (), cases, seed, as_json)


if __name__ == "__main__":
    app()
