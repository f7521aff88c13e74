"""Learning rate schedule: a pure function of the step, so that checkpoints need not hold it."""

from __future__ import annotations

import math

from hybridtron.training.config import RunConfig


def learning_rate(config: RunConfig, step: int) -> float:
    """Return the learning rate of the step-th update, counted from 1.

    The warm-up reaches the peak at warmup_steps. cosine ends at min_lr_ratio of the peak with the last step (Loshchilov
    & Hutter 2017, arXiv 1608.03983); wsd stays at the peak and decays over the last decay_steps (Hu et al. 2024, arXiv
    2404.06395); power is peak * min(1, (step / flat_steps) ** -exponent), times such a decay (Shen et al. 2024, arXiv
    2408.13359, whose a is peak * flat_steps ** exponent); constant stays.
    """
    schedule, total, peak = config.schedule, config.train.steps, config.optimizer.lr
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    floor = schedule.min_lr_ratio
    if schedule.type == "cosine":
        progress = (step - schedule.warmup_steps) / max(1, total - schedule.warmup_steps)
        return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)
    if schedule.type == "power":
        flat = max(1, schedule.flat_steps or schedule.warmup_steps)
        peak *= min(1.0, (step / flat) ** -schedule.exponent)
    if schedule.decay_steps:
        left = min(1.0, max(0, total - step) / schedule.decay_steps)
        if schedule.decay_shape == "1-sqrt":  # Hagele et al. 2024, arXiv 2405.18392
            left = 1 - math.sqrt(1 - left)
        return peak * (floor + (1 - floor) * left)
    return peak
