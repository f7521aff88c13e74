"""Models at several context lengths and batch sizes: rates, memory, and ratios to the first model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from hybridtron.accounting.describe import FORMAT_BYTES, Account, describe
from hybridtron.efficiency.load import Load, LoadMeter
from hybridtron.efficiency.machine import Machine, measure_machine
from hybridtron.efficiency.measure import PASSES, PHASES, Times, measure_times, peak_bytes
from hybridtron.efficiency.parts import Part, parts_of, whole_model
from hybridtron.reporting.shown import Shown
from hybridtron.training.config import RunConfig

RESAMPLES = 2000  # of a bootstrap interval
COVERAGE = 0.95


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the first model: the median over repeats, each divided by the first model's, and the
    ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rates:
    """What a model does at one context length and batch size. Seconds are medians over repeats: of a training step, of
    reading all prompts, and of the next token of all sequences."""

    model: str
    length: int
    batch: int
    seconds: dict[str, float]  # by phase
    ratios: dict[str, Ratio]
    floor_seconds: dict[str, float]
    state_bytes: int  # per sequence, measured
    state_bytes_formula: int
    peak_bytes: dict[str, int | None]  # training; prefill and decoding, beside parameters
    largest_batch: int  # sequences of this length whose measured states fit beside the parameters

    @property
    def tokens_per_s(self) -> dict[str, float]:
        tokens = {"train": self.batch * self.length, "prefill": self.batch * self.length, "decode": self.batch}
        return {phase: tokens[phase] / self.seconds[phase] for phase in PHASES}

    @property
    def share_of_floor(self) -> dict[str, float]:
        return {phase: self.floor_seconds[phase] / self.seconds[phase] for phase in PHASES}

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_s": self.tokens_per_s, "share_of_floor": self.share_of_floor}


@dataclass(frozen=True)
class PartTimes:
    """What one layer takes at one context length and batch size: milliseconds by phase."""

    part: str
    length: int
    batch: int
    parameters: int
    milliseconds: dict[str, float]
    state_bytes: int


@dataclass(frozen=True)
class Efficiency(Shown):
    models: dict[str, Account]
    machine: Machine
    number_format: str
    repeats: int
    by_block: bool
    rates: tuple[Rates, ...]
    parts: tuple[PartTimes, ...]  # of each distinct layer, with by_block
    load: Load
    with_mtp: tuple[str, ...] = ()  # models that predict further tokens in training

    @property
    def remark(self) -> str | None:
        """Return what of the models was left out, in a sentence; None for nothing."""
        if not self.with_mtp:
            return None
        names = ", ".join(self.with_mtp)
        return f"Multi-token prediction, which training alone runs, is left out of all columns: {names}."

    def as_json(self) -> dict[str, Any]:
        return {
            "models": {name: account.as_json() for name, account in self.models.items()},
            "machine": asdict(self.machine),
            "number_format": self.number_format,
            "repeats": self.repeats,
            "by_block": self.by_block,
            "rates": [rates.as_json() for rates in self.rates],
            "parts": [asdict(part) for part in self.parts],
            "load": {**asdict(self.load), "warning": self.load.warning},
            "without_mtp": list(self.with_mtp),
        }


def measure_models(
    configs: Sequence[RunConfig],
    lengths: Sequence[int],
    batch_sizes: Sequence[int],
    repeats: int,
    by_block: bool,
    device: torch.device,
    advance: Callable[[str], None] = lambda setting: None,
) -> Efficiency:
    """Measure all models at all settings, without multi-token prediction. The configs are resolved and have names of
    their own.

    `advance` is called with the setting after each of its repeats.
    """
    with_mtp = tuple(config.name for config in configs if config.model.mtp)
    configs = [_without_mtp(config) for config in configs]
    meter = LoadMeter(on_cpu=device.type == "cpu")
    machine = measure_machine(device, configs[0].precision.dtype)
    if by_block:
        parts, counts = parts_of(configs, device)
    else:
        parts = {config.name: whole_model(config, device) for config in configs}
        counts = [Counter([config.name]) for config in configs]
    others = max(0, _num_parameters(parts, counts) - sum(part.num_parameters for part in parts.values()))
    rates, part_times = [], []
    for length in lengths:
        for batch in batch_sizes:
            setting = f"{batch} x {length}"
            times = measure_times(parts, batch, length, repeats, partial(advance, setting), others)
            measured = [
                _rates(config, count, parts, times, length, batch, machine, by_block)
                for config, count in zip(configs, counts, strict=True)
            ]
            rates += [_with_ratios(each, count, counts[0], times) for each, count in zip(measured, counts, strict=True)]
            part_times += [_part_times(parts[name], times[name], length, batch) for name in parts] if by_block else []
            for part in parts.values():
                part.release()
    models = {config.name: describe(config.model, max(lengths), config.name) for config in configs}
    number_format = configs[0].precision.parameter_format
    told = tuple(rates), tuple(part_times), meter.read(), with_mtp
    return Efficiency(models, machine, number_format, repeats, by_block, *told)


def _num_parameters(parts: Mapping[str, Part], counts: Sequence[Mapping[str, int]]) -> int:
    """Return the number of parameters of the largest of the models that are made of these parts."""
    return max(sum(n * parts[name].num_parameters for name, n in count.items()) for count in counts)


def _without_mtp(config: RunConfig) -> RunConfig:
    """Return a config whose model does not predict further tokens."""
    return config.model_copy(update={"model": config.model.model_copy(update={"mtp": None})})


def _rates(
    config: RunConfig,
    count: Mapping[str, int],
    parts: Mapping[str, Part],
    times: Times,
    length: int,
    batch: int,
    machine: Machine,
    by_block: bool,
) -> Rates:
    """Return the rates of one model, without ratios."""
    account = describe(config.model, length, config.name)
    number_format = config.precision.parameter_format
    parameter_bytes = account.total * FORMAT_BYTES[number_format]
    state_bytes = sum(n * parts[name].state_bytes for name, n in count.items())
    return Rates(
        model=config.name,
        length=length,
        batch=batch,
        seconds={phase: median(_totals(times, count, phase)) for phase in PHASES},
        ratios={},
        floor_seconds=_floors(account, batch, machine, number_format),
        state_bytes=state_bytes,
        state_bytes_formula=account.state_bytes[number_format],
        peak_bytes={} if by_block else _peaks(parts[config.name]),
        largest_batch=max(0, (machine.memory_bytes - parameter_bytes) // max(1, state_bytes)),
    )


def _totals(times: Times, count: Mapping[str, int], phase: str) -> list[float]:
    """Return the seconds of a model in each repeat: the sum over its parts."""
    return [sum(row) for row in zip(*([n * t for t in times[name][phase]] for name, n in count.items()), strict=True)]


def _floors(account: Account, batch: int, machine: Machine, number_format: str) -> dict[str, float]:
    """Return the seconds that no program can beat at this machine's rates.

    Training needs its matrix products. So does prefill, which computes logits of the last token alone. Decoding needs
    those, or to read once the parameters that a token uses (of an embedding of its own one row) and each sequence's
    state.
    """
    config = account.config
    forward = batch * account.flops_forward / machine.flops_per_s
    unread_logits = 2 * batch * (account.seq_len - 1) * config.hidden_size * config.vocab_size / machine.flops_per_s
    used = account.active - (0 if config.tie_embeddings else config.hidden_size * config.vocab_size)
    moved = used * FORMAT_BYTES[number_format] + batch * account.state_bytes[number_format]
    decode = max(moved / machine.bytes_per_s, 2 * batch * used / machine.flops_per_s)
    return {"train": 3 * forward, "prefill": forward - unread_logits, "decode": decode}


def _peaks(part: Part) -> dict[str, int | None]:
    """Return the memory of a training step and of reading and going on, beside parameters and optimizer state."""
    part.release()
    train = peak_bytes(part.train, part.device)
    part.release()

    def generate() -> None:
        part.prefill()
        part.make_room()
        part.decode()

    return {"train": train, "generate": peak_bytes(generate, part.device)}


def _with_ratios(rates: Rates, count: Mapping[str, int], base: Mapping[str, int], times: Times) -> Rates:
    """Return the rates with ratios to the base model."""
    ratios = {}
    for phase in PHASES:
        pairs = zip(_totals(times, base, phase), _totals(times, count, phase), strict=True)
        ratios[phase] = _ratio([theirs / mine for theirs, mine in pairs])
    return replace(rates, ratios=ratios)


def _ratio(paired: Sequence[float]) -> Ratio:
    """Return the median with its percentile bootstrap interval, from a fixed seed."""
    generator = random.Random(0)
    medians = sorted(median(generator.choices(paired, k=len(paired))) for _ in range(RESAMPLES))
    cut = round((1 - COVERAGE) / 2 * RESAMPLES)
    return Ratio(median(paired), medians[cut], medians[-1 - cut])


def _part_times(part: Part, times: Mapping[str, Sequence[float]], length: int, batch: int) -> PartTimes:
    milliseconds = {phase: 1000 * median(times[phase]) for phase in (*PHASES, PASSES)}
    return PartTimes(part.name, length, batch, part.num_parameters, milliseconds, part.state_bytes)
