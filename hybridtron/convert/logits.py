"""Compare the logits of a run, in one process and over two, with those of a Hugging Face folder read by transformers.

Run as a program it is one of two processes that hold the model together.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridtron.checkpoint_reader import load_parameters
from hybridtron.convert.transformers_model import load_transformers_model, without_kernel_warnings
from hybridtron.distributed.config import ParallelConfig
from hybridtron.errors import UserError, cause_of
from hybridtron.model.tensors import has_experts, model_tensors
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import read_run
from hybridtron.training.single_process import Model
from hybridtron.training.validation.resolve import check_layout

BATCH, LENGTH = 2, 64
PROCESSES = 2
CAUSE = "cause"  # the file in which the first process that fails says why


def largest_differences(run: Path, folder: Path) -> tuple[dict[str, float | None], float, list[str]]:
    """Return the largest differences of logits on random tokens, in fp32, by layout; the largest logit; and why a
    layout is missing."""
    config = _layout(read_run(run)[0], 1)
    theirs = load_transformers_model(folder, dtype=torch.float32)
    vocab_size = min(config.model.vocab_size, theirs.get_input_embeddings().weight.shape[0])  # one may have padding
    tokens = torch.randint(vocab_size, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    expected = _their_logits(theirs, tokens)[..., :vocab_size]
    found: dict[str, float | None] = {"TP1": _distance(_own_logits(run, tokens), expected), "TP2": None}
    try:
        check_layout(_layout(config, PROCESSES))
    except UserError as error:
        return found, float(expected.abs().max()), [f"logits at TP2 were not compared: {error}"]
    found["TP2"] = _distance(_logits_of_two_processes(run, tokens), expected)
    return found, float(expected.abs().max()), []


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found[..., : expected.shape[-1]] - expected).abs().max())


def _layout(config: RunConfig, tensor: int) -> RunConfig:
    """Return the config of the model over so many processes of tensor parallelism, in fp32."""
    parallel = ParallelConfig(tensor=tensor, sequence=tensor > 1 and has_experts(config.model))
    model = config.model.model_copy(update={"backend": "torch" if tensor == 1 else "megatron"})
    return config.model_copy(
        update={
            "model": model,
            "parallel": parallel,
            "precision": config.precision.model_copy(update={"format": "fp32"}),
            "data": config.data.model_copy(update={"seq_len": LENGTH}),
        }
    )


@torch.no_grad()
def _own_logits(run: Path, tokens: Tensor) -> Tensor:
    config, checkpoint = read_run(run)
    model = Model(_layout(config, 1))
    model.load_state_dict(load_parameters(checkpoint, model_tensors(config.model), "none"))
    return model.eval().logits(tokens)


@torch.no_grad()
def _their_logits(model: Any, tokens: Tensor) -> Tensor:
    with without_kernel_warnings():
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def _logits_of_two_processes(run: Path, tokens: Tensor) -> Tensor:
    from hybridtron.distributed.process_groups.launch import launch

    with tempfile.TemporaryDirectory(prefix="hybridtron-") as folder:
        torch.save(tokens, Path(folder, "tokens.pt"))
        command = [sys.executable, "-P", "-m", "hybridtron.convert.logits", str(run.absolute()), folder]
        if code := launch(command, PROCESSES, {"CUDA_VISIBLE_DEVICES": ""}, silent=True):
            file = Path(folder, CAUSE)
            why = file.read_text() if file.exists() else f"a process ended with exit code {code}"
            raise OSError(errno.EIO, f"logits at TP2: {why}", str(run))
        logits: Tensor = torch.load(Path(folder, "logits.pt"), weights_only=True)
        return logits


def main() -> None:
    """Compute the logits as one of the processes, the first of which writes them."""
    from hybridtron.distributed.cpu_compat import cuda_calls_on_cpu

    with cuda_calls_on_cpu():  # before megatron-core is imported
        import hybridtron.distributed.engine  # noqa: F401
    from hybridtron.distributed.checkpoint import load_weights
    from hybridtron.distributed.process_groups.environment import read_environment
    from hybridtron.distributed.process_groups.groups import process_groups
    from hybridtron.training.build import build_engine

    warnings.filterwarnings("ignore")  # megatron-core's advice to its developers
    torch.set_num_threads(1)
    run, folder = Path(sys.argv[1]), Path(sys.argv[2])
    config, checkpoint = read_run(run)
    config = _layout(config, PROCESSES)
    tokens = torch.load(folder / "tokens.pt", weights_only=True)
    with process_groups(config.parallel, read_environment()) as parallel_context:
        engine, (model,) = build_engine(config, parallel_context)
        load_weights(checkpoint, engine, "none")
        with torch.no_grad():
            logits = model.eval().logits(tokens.to(parallel_context.device))
        if parallel_context.is_main:
            torch.save(logits.cpu(), folder / "logits.pt")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        with contextlib.suppress(FileExistsError), open(Path(sys.argv[2], CAUSE), "x") as file:
            file.write(cause_of(error))
        raise
