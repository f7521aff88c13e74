"""Weights & Biases (extra `wandb`): the metrics of logged steps, in project train.wandb."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any
from uuid import uuid4

from hybridtron.errors import UserError
from hybridtron.files import read_plain, replace_file
from hybridtron.training.callbacks.base import Callback, Row, TrainContext
from hybridtron.training.callbacks.tensorboard import scalars
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import RunFolder


def require_wandb(config: RunConfig) -> None:
    """Raise UserError where the config asks for Weights & Biases and it is not installed."""
    if config.train.wandb is not None and find_spec("wandb") is None:
        raise UserError(
            f"train.wandb = {config.train.wandb}: Weights & Biases is not installed; expected it "
            "(pip install 'hybridtron[wandb]'), or null"
        )


class WeightsAndBiases(Callback):
    """Log to one W&B run, which a resumed training run continues: its id is kept in the run folder."""

    def __init__(self, project: str, folder: RunFolder) -> None:
        self.project, self.folder = project, folder
        self.run: Any = None

    def on_train_start(self, context: TrainContext) -> None:
        """Open the W&B run, with the config."""
        import wandb
        from wandb.errors import Error

        id_file = self.folder.path / "wandb_id"
        if not id_file.exists():
            replace_file(id_file, uuid4().hex[:12])
        try:
            self.run = wandb.init(
                project=self.project,
                name=context.config.name,
                dir=str(self.folder.path),
                config=context.config.model_dump(mode="json", serialize_as_any=True),
                id=read_plain(id_file).decode(),
                resume="allow",
            )
        except Error as error:
            text = " ".join(str(error).split())
            raise UserError(f"train.wandb = {self.project}: {text} (WANDB_MODE=offline needs no account)") from None

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        """Log the scalars of a logged step."""
        if logged:
            self.run.log(dict(scalars(row)), step=row["step"])

    def close(self) -> None:
        """Upload what is left and end the W&B run."""
        if self.run:
            self.run.finish()
