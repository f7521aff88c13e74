"""What can be put through the tasks: an architecture from scratch, or layers that something else has trained."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from hybridtron.model.config import ModelConfig


class Candidate(Protocol):
    """Sent to other processes whole, so its parts must pickle."""

    @property
    def name(self) -> str: ...

    @property
    def pattern(self) -> str: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def fingerprint(self) -> str:
        """Return twelve digits that change with anything that changes what is trained."""
        ...

    def account(self) -> dict[str, int]:
        """Count parameters without embedding and output projection, and elements of state after 128 tokens."""
        ...

    def start(
        self, vocab_size: int, seq_len: int, autoencoder: bool, seed: int
    ) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Tensor]]:
        """Return the model of one task, the initial values of its trained parameters, and its frozen parameters."""
        ...
