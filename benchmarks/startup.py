"""How long commands take to answer, and `hybridtron train` to make its first step.

    python benchmarks/startup.py [--repeats 5] [--against FOLDER]

Every command runs in a fresh interpreter; commands take turns, so that other load of the machine meets all of them.
Processor time is that of the user and the system, which other load inflates less than time by the clock. Below them
stand `import torch`, which no training can do without, and what a Hugging Face training script imports. With --against,
the same commands of another checkout take turns with these.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
POLL_SECONDS = 0.005
LAWS = ROOT / "tests" / "laws" / "data" / "learning_rate_sweep.csv"
QUICKSTART = ROOT / "configs" / "runs" / "quickstart.yaml"
TARGET = ROOT / "configs" / "models" / "llama3_2.yaml"
COMMANDS: dict[str, list[object]] = {
    "hybridtron --help": ["--help"],
    "hybridtron describe": ["describe", QUICKSTART],
    "hybridtron scale": ["scale", "A2M", "--method", "stretch", "--target", TARGET, "size=1b"],
    "hybridtron laws list": ["laws", "list"],
    "hybridtron laws fit, with pictures": ["laws", "fit", "learning-rate", LAWS, "--out", "fit"],
}
FLOORS = {
    "python -c 'import torch'": "import torch",
    "python -c 'from transformers import LlamaForCausalLM, Trainer'": (
        "from transformers import LlamaForCausalLM, Trainer"
    ),
}
Seconds = tuple[float, float]  # of the processor, and by the clock


def answer(command: list[str], folder: Path, root: Path) -> Seconds:
    """Run a command to its end; return its seconds. Raises RuntimeError with what it printed where it fails."""
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment(root), stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)}: {output.read()}")
    return usage.ru_utime + usage.ru_stime, seconds


def first_step(folder: Path, root: Path) -> Seconds:
    """Start a run of the quickstart's model; return the seconds until its first step is done, and end it."""
    run = Path(tempfile.mkdtemp(dir=folder))
    keys = (f"folder={run}", "data.seq_len=64", "train.global_batch_size=2", "train.micro_batch_size=2")
    command = hybridtron("train", QUICKSTART, *keys)
    start = time.time()
    process = subprocess.Popen(command, cwd=folder, env=environment(root), stderr=subprocess.DEVNULL)
    try:
        while not (event := _event(run / "attempts.jsonl", "first_step")):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}")
            time.sleep(POLL_SECONDS)
        used = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, used)) / os.sysconf("SC_CLK_TCK"), event - start
    finally:
        process.kill()
        process.wait()


def _event(file: Path, name: str) -> float | None:
    """Return the time of an event in a run's attempts.jsonl, None where it has not happened."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return next((float(row["time"]) for row in rows if row["event"] == name), None)


def hybridtron(*arguments: object) -> list[str]:
    """Return the command line of a verb."""
    return [sys.executable, "-m", "hybridtron", *map(str, arguments)]


def environment(root: Path) -> dict[str, str]:
    """Return the variables for a process that imports the package of this checkout, and keeps compiled modules."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}


def main() -> None:
    """Print a table of medians, with the smallest in brackets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each command, after one that does not count")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout")
    options = parser.parse_args()
    roots = {"": ROOT} | ({f" ({options.against.name})": options.against.resolve()} if options.against else {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured: dict[str, Callable[[], Seconds]] = {}
        for label, code in FLOORS.items():
            measured[label] = partial(answer, [sys.executable, "-c", code], folder, ROOT)
        for suffix, root in roots.items():
            for label, words in COMMANDS.items():
                measured[label + suffix] = partial(answer, hybridtron(*words), folder, root)
            measured[f"hybridtron train, to its first step{suffix}"] = partial(first_step, folder, root)
        found: dict[str, list[Seconds]] = {label: [] for label in measured}
        for repeat in range(options.repeats + 1):
            for label, measure in measured.items():
                seconds = measure()
                if repeat:
                    found[label].append(seconds)
    print("| command | processor | by the clock |\n|---|---|---|")
    for label, rows in found.items():
        cells = [f"{statistics.median(column):.2f} s ({min(column):.2f})" for column in zip(*rows, strict=True)]
        print(f"| {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
