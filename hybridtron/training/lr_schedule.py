"""Learning rate schedule: a pure function of the step, so that checkpoints need not hold it."""

from __future__ import annotations

import math

from hybridtron.training.config import RunConfig


def learning_rate(config: RunConfig, step: int) -> float:
    """Return the learning rate of the step-th update, counted from 1.

    The warm-up reaches the peak at warmup_steps. cosine ends at min_lr_ratio of the peak with the last step (Loshchilov
    & Hutter 2017, arXiv 1608.03983); wsd stays at the peak and decays linearly over the last decay_steps (Hu et al.
    2024, arXiv 2404.06395); constant stays.
    """
    schedule, total, peak = config.schedule, config.train.steps, config.optimizer.lr
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    floor = schedule.min_lr_ratio
    if schedule.type == "cosine":
        progress = (step - schedule.warmup_steps) / max(1, total - schedule.warmup_steps)
        return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)
    if schedule.type == "wsd":
        left = max(0, total - step)
        return peak * (floor + (1 - floor) * min(1.0, left / schedule.decay_steps))
    return peak
