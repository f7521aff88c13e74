"""Train a small hybrid for a minute, watch it with a callback, and look at its loss.

python examples/train_and_look_at_the_loss.py [key=value ...]
"""

import sys

import hybridtron as ht

CONFIG = {
    "base": "configs/runs/quickstart.yaml",
    "name": "example",
    "train": {"steps": 40, "eval_every": 20, "log_every": 5},
    "schedule": {"warmup_steps": 5, "decay_steps": 10},
    "checkpoint": {"save_every": 0},
}


class LargestGradient(ht.Callback):
    """Remember the step with the largest gradient norm."""

    def __init__(self) -> None:
        self.step, self.norm = 0, 0.0

    def after_step(self, context, row, logged) -> None:
        if row["grad_norm"] > self.norm:
            self.step, self.norm = row["step"], row["grad_norm"]


if __name__ == "__main__":
    largest = LargestGradient()
    run = ht.train(CONFIG, *sys.argv[1:], callbacks=[largest], resume=True)
    for row in run.metrics:
        print(f"step {row['step']:3d}  loss {row['loss']:.3f}")
    if largest.step:  # none where the run was finished before
        print(f"largest gradient: {largest.norm:.2f} in step {largest.step}")
    print(ht.load(run.folder).generate("def ", max_tokens=40)[0])
