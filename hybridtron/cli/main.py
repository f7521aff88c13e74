"""The command line: one verb per task. Heavy imports happen inside a verb."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hybridtron import __version__
from hybridtron.cli.arguments import ArgumentParser
from hybridtron.errors import UserError

if TYPE_CHECKING:
    from hybridtron.training.config import RunConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 failed, 2 bad input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parse(given)
    # Threads that spin at barriers starve each other, and everything else, on a shared machine; torch reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Notes of libraries to their developers; what concerns the user is said by this program.
    for module in ("megatron", "torch"):
        warnings.filterwarnings("ignore", module=module)
    # megatron-core looks for gradients of what the distributed optimizer has cut out of its buffers.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except UserError as error:
        if _speaks():
            print(f"hybridtron: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough; nothing may be flushed there at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _speaks() -> bool:
    """Among the processes of --nproc the first speaks for all; elsewhere each may be the only one with a problem."""
    return "HYBRIDTRON_PARENT" not in os.environ or os.environ.get("RANK") == "0"


def _parse(given: list[str]) -> argparse.Namespace:
    """Overrides may stand before or after options."""
    options, rest = _parser().parse_known_args(given)
    stray = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(options, "overrides")]
    if stray:
        _parser().error(f"unrecognized arguments: {' '.join(stray)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hybridtron", description="Train and study hybrid language models.")
    parser.add_argument("--version", action="version", version=f"hybridtron {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("train", help="train a model, or continue a run")
    _takes_config(verb)
    verb.add_argument("--nproc", type=int, default=None, metavar="N", help="processes to start on this machine")
    verb.add_argument("--resume", action="store_true", help="continue from the latest checkpoint, if there is one")
    verb.add_argument("--print", action="store_true", dest="show", help="show the config with its defaults and stop")
    verb.set_defaults(run=_train)

    verb = verbs.add_parser("eval", help="loss, perplexity and bits per byte of a run on held-out text")
    verb.add_argument("run_path", metavar="RUN_OR_CHECKPOINT", type=Path)
    verb.add_argument("--data", metavar="PREFIX", help="token files; by default the run's data.valid")
    verb.add_argument(
        "--sequences",
        type=int,
        metavar="N",
        help="sequences, at most what the file holds; by default the run's train.eval_sequences",
    )
    _takes_json(verb)
    verb.set_defaults(run=_eval)

    verb = verbs.add_parser("generate", help="continue a prompt")
    verb.add_argument("run_path", metavar="RUN_OR_CHECKPOINT", type=Path)
    verb.add_argument("--prompt", required=True, metavar="TEXT", help="what the text begins with")
    verb.add_argument("--tokens", type=int, default=200, metavar="N", help="tokens to add at most (%(default)s)")
    verb.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0: always the likeliest token (%(default)s)"
    )
    verb.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="draw among the K likeliest, 0: all (%(default)s)"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (%(default)s)")
    _takes_json(verb)
    verb.set_defaults(run=_generate)

    verb = verbs.add_parser("describe", help="layers, parameters, FLOPs and state of a config's model")
    _takes_config(verb)
    _takes_json(verb)
    verb.set_defaults(run=_describe)

    verb = verbs.add_parser("plan", help="stages, memory and traffic of a config's layout on any number of processes")
    _takes_config(verb)
    verb.add_argument("--gpus", type=int, required=True, metavar="N", help="processes in all")
    verb.add_argument("--dry-run", action="store_true", help="build every distinct stage without values and run it")
    _takes_json(verb)
    verb.set_defaults(run=_plan)

    verb = verbs.add_parser("search", help="search architectures, or go on with a search; several may share one folder")
    _takes_config(verb)
    verb.add_argument("--workers", type=int, default=1, metavar="N", help="processes to start here (%(default)s)")
    verb.add_argument("--report", action="store_true", help="evaluate nothing: the page of what is recorded so far")
    verb.add_argument("--print", action="store_true", dest="show", help="show the config with its defaults and stop")
    _takes_json(verb)
    verb.set_defaults(run=_search)

    verb = verbs.add_parser("scale", help="grow a small pattern to the size of a target model")
    verb.add_argument("pattern", metavar="PATTERN", help="2*attn 4*mlp, or in another dialect: AAMMMM, 2A+4M, **----")
    verb.add_argument("--method", choices=["stretch", "stack"], required=True, help="longer runs, or more copies")
    verb.add_argument(
        "--target", type=Path, required=True, metavar="CONFIG", help="a YAML file whose size and widths count"
    )
    verb.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="dotted keys of the target, such as size=1b"
    )
    verb.add_argument(
        "--round",
        choices=["up", "parameters", "flops"],
        default="up",
        help="up: every run, as the paper does; else to the nearest size in parameters or FLOPs (%(default)s)",
    )
    verb.add_argument(
        "--dialect", choices=["auto", "native", "megatron", "composer"], default="auto", help="of PATTERN (%(default)s)"
    )
    verb.add_argument("--out", type=Path, metavar="FILE", help="write a training config")
    _takes_json(verb)
    verb.set_defaults(run=_scale)

    verb = verbs.add_parser("mad", help="six synthetic tasks that rank architectures in minutes")
    verb.add_argument("verb", metavar="data|run|report", nargs="?", help="`hybridtron mad VERB --help` tells more")
    verb.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    verb.set_defaults(run=_mad)

    verb = verbs.add_parser("doctor", help="what is installed and which path each operation will take")
    _takes_json(verb)
    verb.set_defaults(run=_doctor)
    return parser


def _takes_config(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file")
    verb.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="dotted keys, such as optimizer.lr=1e-3"
    )


def _takes_json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="for programs")


def _load(options: argparse.Namespace) -> RunConfig:
    return _load_config(options.config, options.overrides)


def _load_config(path: Path, overrides: Sequence[str]) -> RunConfig:
    from hybridtron.config.load import load
    from hybridtron.training.config import RunConfig
    from hybridtron.training.validation.resolve import resolve

    return resolve(load(path, overrides, RunConfig))


def _train(options: argparse.Namespace) -> int:
    config = _load(options)
    if options.show:
        from hybridtron.config.load import dump
        from hybridtron.training.validation.resolve import data_parallel_size

        if options.nproc:
            data_parallel_size(config, options.nproc)
        print(dump(config), end="")
        return 0
    from hybridtron.distributed.environment import read_environment

    if options.nproc is not None and options.nproc != 1:
        return _train_in_processes(options, config)
    environment = read_environment()
    given_by = "--nproc" if environment.world_size == 1 else f"processes of {environment.launcher}"
    if _finished(options, config, environment.world_size, given_by, speaks=environment.rank == 0):
        return 0
    from hybridtron.training.loop import TrainingStopped, train

    try:
        train(config, environment, options.resume)
    except TrainingStopped as error:
        if _speaks():
            print(f"hybridtron: stopped: {error}", file=sys.stderr)
        return 1
    return 0


def _finished(
    options: argparse.Namespace, config: RunConfig, world_size: int, given_by: str, speaks: bool
) -> bool:  # fmt: skip
    """Whether nothing is left to do but to say again how the run ended; asked before torch is imported."""
    from hybridtron.training.report import repeat_summary
    from hybridtron.training.run_folder.folder import RunFolder
    from hybridtron.training.run_folder.resume import find_start
    from hybridtron.training.validation.resolve import data_parallel_size

    data_parallel_size(config, world_size, given_by)
    folder = RunFolder(config.run_folder)
    start = find_start(folder, config, options.resume)
    return repeat_summary(folder, start, config, lambda text: print(text, file=sys.stderr) if speaks else None)


def _train_in_processes(options: argparse.Namespace, config: RunConfig) -> int:
    """Check here whatever needs no tensor, so that bad input starts no process."""
    import torch

    from hybridtron.distributed.environment import read_environment
    from hybridtron.distributed.launch import launch
    from hybridtron.training.corpus import open_corpus
    from hybridtron.training.run_folder.folder import RunFolder
    from hybridtron.training.run_folder.resume import require_same_tokens
    from hybridtron.training.validation.memory import require_memory

    if options.nproc < 1:
        raise UserError(f"--nproc = {options.nproc}: expected at least 1")
    found = read_environment()
    if found.world_size > 1:
        raise UserError(f"--nproc = {options.nproc}: {found.launcher} already started {found.world_size} processes")
    if _finished(options, config, options.nproc, "--nproc", speaks=True):
        return 0
    _require_devices(options.nproc, torch.cuda.device_count() if torch.cuda.is_available() else None)
    require_memory(config, options.nproc)
    require_same_tokens(RunFolder(config.run_folder), open_corpus(config))
    command = [sys.executable, "-m", "hybridtron", "train", str(options.config), *options.overrides]
    return launch(command + ["--resume"] * options.resume, options.nproc)


def _require_devices(processes: int, gpus: int | None) -> None:
    """UserError where processes would share a GPU; None: there are none to share."""
    if gpus is not None and processes > gpus:
        raise UserError(f"--nproc = {processes}: expected at most {gpus}, one process for each GPU of this machine")


def _eval(options: argparse.Namespace) -> int:
    from hybridtron.training.evaluate import evaluate_run

    result = evaluate_run(options.run_path, options.data, options.sequences)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    print(f"{result['checkpoint']} on {result['data']}, {result['sequences']} sequences of {result['seq_len']} tokens")
    bits = (
        "unknown (no byte count beside the tokens)"
        if result["bits_per_byte"] is None
        else f"{result['bits_per_byte']:.4f}"
    )
    perplexity = "beyond any number" if result["perplexity"] is None else f"{result['perplexity']:.3f}"
    print(f"loss {result['loss']:.4f}  perplexity {perplexity}  bits per byte {bits}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    from hybridtron.training.evaluate import generate_from_run

    text = generate_from_run(
        options.run_path, options.prompt, options.tokens, options.temperature, options.top_k, options.seed
    )
    print(json.dumps({"prompt": options.prompt, "text": text}) if options.json else options.prompt + text)
    return 0


def _describe(options: argparse.Namespace) -> int:
    from hybridtron.accounting.describe import describe
    from hybridtron.accounting.picture import draw

    config = _load(options)
    account = describe(config.model, config.data.seq_len)
    if options.json:
        print(json.dumps(account.as_json(), indent=2))
    else:
        draw(config.name, config.model, account)
    return 0


def _plan(options: argparse.Namespace) -> int:
    from hybridtron.planner.plan import plan
    from hybridtron.planner.show import show

    if options.gpus < 1:
        raise UserError(f"--gpus = {options.gpus}: expected at least 1")
    config = _load(options)
    made = plan(config, options.gpus, options.dry_run)
    if options.json:
        print(json.dumps(made.as_json(), indent=2))
    else:
        show(config.name, made)
    return 0


def _search(options: argparse.Namespace) -> int:
    from hybridtron.cli.search import main

    return main(options)


def _scale(options: argparse.Namespace) -> int:
    from hybridtron.composer.grow.scale import read_small_pattern, scale, show, write_config

    target = _load_config(options.target, options.overrides)
    scaled = scale(
        read_small_pattern(options.pattern, target.model, options.dialect), target, options.method, options.round
    )
    if options.out:
        write_config(scaled, options.out)
    print(json.dumps(scaled.as_json(), indent=2) if options.json else show(scaled, target))
    if options.out and not options.json:
        print(f"written     {options.out}")
    return 0


def _mad(options: argparse.Namespace) -> int:
    from hybridtron.cli.mad import main

    return main([*filter(None, [options.verb]), *options.arguments])


def _doctor(options: argparse.Namespace) -> int:
    from hybridtron.accounting.doctor import examine, show

    report = examine()
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    return 0
