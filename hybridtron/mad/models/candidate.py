"""What can be put through the tasks: an architecture from scratch, or layers that something else has trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from hybridtron.accounting.describe import describe
from hybridtron.mad.models.proxy_model import initial_values
from hybridtron.mad.tasks.protocol import Task
from hybridtron.model.config import ModelConfig

SEQ_LEN = 128  # at which parameters and state are counted


class Candidate(ABC):
    """Sent to other processes whole, so its parts must pickle."""

    name: str
    pattern: str
    notes: tuple[str, ...]

    @abstractmethod
    def fingerprint(self) -> str:
        """Return twelve digits that change with anything that changes what is trained."""

    @abstractmethod
    def account(self) -> dict[str, int | None]:
        """Count `parameters`, and the elements of `state_size`, None where they are not known."""

    @abstractmethod
    def start(
        self, chosen: Task, vocab_size: int, seq_len: int, seed: int
    ) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """Return the model of one task, the initial values of its trained parameters, and its frozen parameters.

        The model is what `Stack` builds: a ModelConfig or a ModuleModel.
        """


class ConfigCandidate(Candidate):
    """A candidate whose models are those of a config."""

    @abstractmethod
    def model(self, vocab_size: int, seq_len: int) -> ModelConfig:
        """Build the model config of one task."""

    def account(self) -> dict[str, int | None]:
        """Count parameters without embedding and output projection, and elements of state after 128 tokens."""
        found = describe(self.model(vocab_size=16, seq_len=SEQ_LEN), SEQ_LEN)
        return {"parameters": found.total - found.embedding, "state_size": found.state_size}

    def start(
        self, chosen: Task, vocab_size: int, seq_len: int, seed: int
    ) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        model = self.model(vocab_size, seq_len)
        return model, initial_values(model, chosen.autoencoder, seed), {}
