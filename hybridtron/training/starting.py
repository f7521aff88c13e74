"""Begin a run: what it starts from, in a folder that is claimed, and in which it writes what it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hybridtron.data.tokenizers.tokenizer import load_tokenizer
from hybridtron.errors import TrainingStopped, UserError
from hybridtron.training.build import describe_stages
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import Corpus, open_corpus
from hybridtron.training.loop import Trainer
from hybridtron.training.run_folder.environment_info import environment_info
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.resume import Start, as_recorded, record_changes, require_same_tokens
from hybridtron.training.validation.memory import require_memory


@dataclass(frozen=True)
class Prepared:
    """Where a run starts, and the config and tokens that it uses from there."""

    config: RunConfig
    corpus: Corpus
    start: Start

    @property
    def trains(self) -> bool:
        """Return whether steps are left to train; otherwise only the closing report is missing."""
        return self.start.state.step < self.config.train.steps


def prepare(folder: RunFolder, config: RunConfig, start: Start, world_size: int) -> Prepared:
    """Open the tokens of a run. Raises UserError where they, or the memory of this machine, do not suffice."""
    if start.state.step >= config.train.steps:
        config = as_recorded(folder, config)
    require_memory(config, world_size)
    corpus = open_corpus(config)
    return Prepared(config, corpus, replace(start, changes=(*start.changes, *require_same_tokens(folder, corpus))))


def begin(trainer: Trainer, folder: RunFolder, start: Start) -> None:
    """Claim the folder and write what the run is into it. Raises UserError, TrainingStopped."""
    _claim(trainer, folder)
    config = trainer.config
    trains = start.state.step < config.train.steps
    if start.checkpoint:
        for line in start.notes:
            trainer.print_line(f"{line}; going on from {start.checkpoint.name}")

    def write() -> None:
        if start.checkpoint:
            for moved in folder.set_aside_damaged(start.checkpoint, start.damaged):
                trainer.print_line(f"moved to {moved}")
        if moved_beyond := folder.set_aside(start.state.step):
            names = ", ".join(path.name for path in moved_beyond)
            trainer.print_line(f"moved into {folder.abandoned}, since the run goes on from before them: {names}")
        record_changes(folder, start.changes, start.state.step + 1)
        initial = _initial_weights(folder, start)
        folder.create(config, environment_info(config, trainer.parallel_context, trainer.corpus, initial))
        load_tokenizer(config.data.tokenizer).save(folder.path)

    writes = trainer.parallel_context.is_main and trains
    if failure := trainer.engine.first_failure(write if writes else lambda: None):
        raise TrainingStopped(f"run folder {folder.path}: cannot be written to: {failure}")
    if config.parallel.num_stages > 1:
        trainer.print_line(describe_stages(config))
    for remark in _remarks(trainer):
        trainer.print_line(remark)
    if start.weights:
        trainer.print_line(f"begins with the weights of {start.weights}{_remainder(start.initial)}")
    if trains:
        for warning in trainer.corpus.repeated(config.train.batch_sizes.samples(config.train.steps)):
            trainer.print_line(warning)
    if start.checkpoint:
        trainer.print_line(f"resumed from {start.checkpoint} at step {start.state.step}")
    for change in start.changes:
        trainer.print_line(f"{change} from step {start.state.step + 1}" if trains else f"{change}: not used")


def _remarks(trainer: Trainer) -> Iterator[str]:
    """Yield a line for each key that does nothing on this device, or makes the first step long."""
    config, on_cpu = trainer.config, trainer.parallel_context.device.type == "cpu"
    if config.train.cuda_graphs and trainer.engine.recorded is None:
        yield "train.cuda_graphs: there is no GPU; steps run as without it"
    if config.train.compile:
        slower = "; on a CPU most models are slower with it" if on_cpu else ""
        yield f"train.compile: the first step compiles the layers, which may take minutes{slower}"
    if config.parallel.cpu_offload_layers and on_cpu:
        yield "parallel.cpu_offload_layers has no effect on a CPU: activations are in its memory already"


def _remainder(initial: Mapping[str, Any]) -> str:
    """Return what does not come from the weights that the run begins with, or is not used of them, in words."""
    words = {"init_random": "random: {}", "init_left_over": "not used: {}", "init_new_rows": "new vocabulary rows: {}"}
    said = {key: ", ".join(value) if isinstance(value, list) else value for key, value in initial.items()}
    return "".join(f"; {text.format(said[key])}" for key, text in words.items() if key in said)


def _initial_weights(folder: RunFolder, start: Start) -> dict[str, Any]:
    """Return whose weights the run began with, for environment.json, which keeps it on resume."""
    if start.checkpoint is None:
        return dict(start.initial)
    return {key: value for key, value in folder.read_environment().items() if key.startswith("init_")}


def _claim(trainer: Trainer, folder: RunFolder) -> None:
    """Lock the folder, after all processes have read it; raise UserError in all of them where that fails."""
    refusal = f"run folder {folder.path}: another process is writing to it; expected one run at a time"
    free = True
    if trainer.parallel_context.is_main:
        try:
            free = folder.lock()
        except UserError as error:
            free, refusal = False, str(error)
    if not trainer.engine.agree(free):
        raise UserError(refusal)
