"""Text files into token files that hybridtron trains on.

    python tools/prepare_data.py books/ more.jsonl.zst --out data/mine --workers 4

Files: .txt (one document each), .jsonl, .jsonl.gz, .jsonl.zst (one document per line), and folders of them. The same
command again goes on where a killed one stopped. A damaged line is counted, and kept in OUT/damaged.jsonl.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, naming_options
from hybridtron.cli.exit_code import exit_code
from hybridtron.data.preprocessing.corpus import Progress, prepare
from hybridtron.data.preprocessing.report import CorpusReport
from hybridtron.data.preprocessing.sources import find_sources
from hybridtron.data.tokenizers.hugging_face import FILE_NAME
from hybridtron.processes import WorkerDied

SEQ_LEN = 256  # of the printed section, where the data is as long
LINE_EVERY = 5.0  # seconds, where progress is not shown on a terminal


def parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="file or folder")
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="new folder for the token files; takes their size on the disk, and a little more for the work",
    )
    parser.add_argument("--tokenizer", default="byte", help="byte (default), a tokenizer.json, or a folder with one")
    parser.add_argument("--eod-token", help="the tokenizer's end-of-document token, where its name is unusual")
    parser.add_argument(
        "--valid", nargs="+", type=Path, default=[], metavar="PATH", help="files or folders to hold out"
    )
    parser.add_argument("--valid-fraction", type=float, default=0.05, help="documents held out without --valid (0.05)")
    parser.add_argument("--json-key", default="text", help="where a JSON line has its text (text)")
    parser.add_argument("--text-suffixes", nargs="+", default=[".txt"], metavar="SUFFIX", help="text files (.txt)")
    cores = os.cpu_count() or 1
    parser.add_argument("--workers", dest="num_workers", type=int, default=cores, help="processes (all cores)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def progress_view() -> AbstractContextManager[Progress]:
    """Show the progress of each stage on stderr: a bar on a terminal, some lines elsewhere."""
    return progress_bar() if sys.stderr.isatty() else nullcontext(progress_lines())


def progress_lines() -> Progress:
    """Print a line every few seconds, and one at the end of a stage."""
    from rich.filesize import decimal

    said_at = time.monotonic()

    def move(stage: str, done: int, total: int) -> None:
        nonlocal said_at
        if done == total > 0 or time.monotonic() - said_at > LINE_EVERY:
            said_at = time.monotonic()
            text = f"{done:,} files" if stage == "list" else f"{decimal(done)} of {decimal(total)}"
            print(f"{stage}: {text}", file=sys.stderr)

    return move


@contextmanager
def progress_bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    bar, listing, tasks = Bar(*columns, TimeRemainingColumn(), console=console), console.status(""), {}

    def move(stage: str, done: int, total: int) -> None:
        if stage == "list":
            listing.update(f"list: {done:,} files")
            listing.start()
        if not total:
            return
        listing.stop()
        if stage not in tasks:
            tasks[stage] = bar.add_task(f"{stage:6}", total=total, completed=done)
            bar.start()  # not before: bad input is to print its one line only
        bar.update(tasks[stage], completed=done)

    try:
        yield move
    finally:
        listing.stop()
        if tasks:
            bar.stop()


def print_summary(report: CorpusReport, out: Path) -> None:
    """Print a short table, what was damaged or ignored, and the lines to put into a run's YAML."""
    from rich.console import Console
    from rich.table import Table

    table = Table("split", box=None, pad_edge=False)
    for title in ("documents", "tokens", "bytes", "bytes/token"):
        table.add_column(title, justify="right")
    for name, split in report.splits.items():
        numbers = [f"{n:,}" for n in (split.documents, split.tokens, split.bytes)]
        table.add_row(name, *numbers, f"{split.bytes_per_token:.3f}")
    Console(highlight=False).print(table)
    for count, what in (
        (report.damaged_lines, f"damaged lines (kept in {out / 'damaged.jsonl'})"),
        (report.repaired_documents, "documents repaired (what is no Unicode became U+FFFD)"),
        (report.empty_documents, "empty documents (left out)"),
        (report.ignored_files, f"files of other kinds (named in {out / 'sources.jsonl'})"),
    ):
        if count:
            print(f"{what}: {count:,}")
    for damage in report.first_damaged[:5]:
        print(f"  {damage['file']} line {damage['line']}: {damage['reason']}")
    missing = [name for name in ("train", "valid") if name not in report.splits]
    if missing:
        print(f"no {missing[0]} split: give its files with --valid, or a --valid-fraction and two documents or more")
    values = {name: str(out / name) for name in report.splits}
    values["tokenizer"] = "byte" if report.tokenizer["spec"] == "byte" else str(out / FILE_NAME)
    values["seq_len"] = str(min(SEQ_LEN, *(max(1, split.tokens - 1) for split in report.splits.values())))
    plain = re.compile(r"[\w./-]+")  # what YAML reads as it is
    pairs = [f"{key}: {text if plain.fullmatch(text) else json.dumps(text)}" for key, text in values.items()]
    print(f"\n# for a run's YAML, started in this folder\ndata: {{{', '.join(pairs)}}}")


def main(arguments: list[str] | None = None) -> int:
    """Prepare, and return the exit code: 0 done, 1 failed, 130 interrupted. Raises UserError."""
    command = parser()
    args = command.parse_args(arguments)
    try:
        with naming_options(command, args), progress_view() as progress:
            sources = find_sources(
                args.inputs, args.text_suffixes, args.valid, lambda count: progress("list", count, 0)
            )
            report = prepare(
                sources,
                args.out,
                tokenizer=args.tokenizer,
                eod_token=args.eod_token,
                valid_fraction=args.valid_fraction,
                json_key=args.json_key,
                num_workers=args.num_workers,
                progress=progress,
            )
    except (WorkerDied, OSError) as error:
        reason = f"cannot write to {args.out}: {error.strerror}" if isinstance(error, OSError) else error
        print(f"hybridtron: error: {reason}; the same command goes on from there", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hybridtron: interrupted; the same command goes on from there", file=sys.stderr)
        return 130
    if args.json:
        print(report.to_json(), end="")
    else:
        print_summary(report, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
