"""Several mixers side by side on one norm: the hybrids inside a layer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from hybridtron.config.schema import dispatch, problem
from hybridtron.mixers.contract import Capabilities, MixerConfig
from hybridtron.tensors import Init, TensorSpec


def _branch(value: Any) -> MixerConfig:
    from hybridtron.mixers.registry import MIXERS  # which lists this mixer too

    return dispatch(value, MIXERS)


Branch = Annotated[SerializeAsAny[MixerConfig], BeforeValidator(_branch)]


class ParallelMixersConfig(MixerConfig):
    """Several mixers of the same input, their outputs merged."""

    type: Literal["parallel"]
    branches: list[Branch] = Field(
        min_length=2,
        description="The mixers, of sequence or of channels or parallel again; each has a `type` and that type's keys.",
    )
    merge: Literal["sum", "mean", "gate"] = Field(
        "sum", description="Add the outputs, average them, or weigh them by a softmax that each token's input sets."
    )

    first_keys = "branches merge"

    @model_validator(mode="before")
    @classmethod
    def _give_branches_their_width(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("branches"), list | tuple):
            return data
        branches = []
        for index, branch in enumerate(data["branches"]):
            if isinstance(branch, dict):
                if "hidden_size" in branch:
                    key = f"branches[{index}].hidden_size"
                    raise problem(key, branch["hidden_size"], "nothing: the model's is used")
                branch = {**branch, "hidden_size": data.get("hidden_size", 0)}
            branches.append(branch)
        return {**data, "branches": branches}

    @model_validator(mode="after")
    def _branches_have_no_norm(self) -> ParallelMixersConfig:
        for index, branch in enumerate(self.branches):
            if branch.norm_position != "pre":
                key = f"branches[{index}].norm_position"
                raise problem(key, branch.norm_position, "nothing: the branches share the norm of their layer")
            if branch.carries:
                expected = "a mixer without values of earlier layers, which need a layer of their own"
                raise problem(f"branches[{index}]", branch.type, expected)
        return self

    @property
    def mixers(self) -> tuple[MixerConfig, ...]:
        return tuple(mixer for branch in self.branches for mixer in branch.mixers)

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """Return the capabilities that all branches have."""
        each = [branch.capabilities for branch in self.branches]
        return Capabilities(**{name: all(getattr(one, name) for one in each) for name in vars(each[0])})

    def for_layer(self, index: int, count: int) -> ParallelMixersConfig:
        return self.model_copy(update={"branches": [branch.for_layer(index, count) for branch in self.branches]})

    def tensors(self) -> dict[str, TensorSpec]:
        specs = {
            f"branches.{index}.{name}": spec
            for index, branch in enumerate(self.branches)
            for name, spec in branch.tensors().items()
        }
        if self.merge == "gate":
            specs["gate"] = TensorSpec((len(self.branches), self.hidden_size), Init("zeros"))
        return specs

    def flops(self, seq_len: int) -> int:
        gate = 2 * seq_len * len(self.branches) * self.hidden_size if self.merge == "gate" else 0
        return gate + sum(branch.flops(seq_len) for branch in self.branches)

    def unseen_flops(self, seq_len: int) -> int:
        return sum(branch.unseen_flops(seq_len) for branch in self.branches)

    def state_size(self, seq_len: int) -> int:
        return sum(branch.state_size(seq_len) for branch in self.branches)

    def state_bytes(self, seq_len: int, parameter_bytes: int) -> int:
        return sum(branch.state_bytes(seq_len, parameter_bytes) for branch in self.branches)

    def active_parameters(self) -> int:
        idle = sum(branch.parameters() - branch.active_parameters() for branch in self.branches)
        return self.parameters() - idle
