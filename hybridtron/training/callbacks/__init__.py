"""Extend training: subclass `Callback` and pass an instance to `train(..., callbacks=[...])`.

base.py              Callback, TrainContext, StopTraining
attempt_log.py       attempts.jsonl
metrics.py           metrics.jsonl
tensorboard.py       tensorboard/
plot.py              loss.png
fp8.py               fp8.jsonl and fp8.png
layer_statistics.py  layer_statistics.jsonl and layer_statistics.png
progress.py          a progress bar, or a line per logged step
wandb.py             Weights & Biases
closing_report.py    summary.json and the last lines of the output
"""

from hybridtron.training.callbacks.base import Callback, Row, StopTraining, TrainContext

__all__ = ["Callback", "Row", "StopTraining", "TrainContext"]
