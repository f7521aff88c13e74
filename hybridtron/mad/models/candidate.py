"""What can be put through the tasks: an architecture from scratch, or layers that something else has trained."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from hybridtron.accounting.describe import describe
from hybridtron.mad.models.proxy_model import initial_values
from hybridtron.model.config import ModelConfig

SEQ_LEN = 128  # at which parameters and state are counted


class Candidate(ABC):
    """Sent to other processes whole, so its parts must pickle."""

    name: str
    pattern: str
    notes: tuple[str, ...]

    @abstractmethod
    def model(self, vocab_size: int, seq_len: int) -> ModelConfig:
        """Build the model config of one task."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return twelve digits that change with anything that changes what is trained."""

    def account(self) -> dict[str, int]:
        """Count parameters without embedding and output projection, and elements of state after 128 tokens."""
        found = describe(self.model(vocab_size=16, seq_len=SEQ_LEN), SEQ_LEN)
        return {"parameters": found.total - found.embedding, "state_size": found.state_size}

    def start(
        self, vocab_size: int, seq_len: int, autoencoder: bool, seed: int
    ) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Tensor]]:
        """Return the model of one task, the initial values of its trained parameters, and its frozen parameters."""
        model = self.model(vocab_size, seq_len)
        return model, initial_values(model, autoencoder, seed), {}
