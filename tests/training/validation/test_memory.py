"""What no memory can hold is refused; whatever could be held is not."""

import pytest

from hybridtron.accounting.describe import describe
from hybridtron.errors import UserError
from hybridtron.training.validation.memory import machine_memory, require_memory
from tests.training.runs import resolved_tiny


def test_weights_alone_decide():
    config = resolved_tiny()
    weights = 4 * describe(config.model, config.data.seq_len).total
    require_memory(config, 1, available=weights)
    with pytest.raises(UserError, match=r"model.hidden_size = 32: .* parameters, whose weights alone take"):
        require_memory(config, 1, available=weights - 1)
    require_memory(config, 2, available=weights // 2 + 1)


def test_a_batch_needs_room_too():
    config = resolved_tiny()
    large = config.train.model_copy(update={"global_batch_size": 10**12})
    with pytest.raises(UserError, match=r"train.global_batch_size = 1000000000000: .* 256 TB"):
        require_memory(config.model_copy(update={"train": large}), 1, available=10**12)
    large = config.train.model_copy(update={"micro_batch_size": 10**9})
    with pytest.raises(UserError, match=r"train.micro_batch_size"):
        require_memory(config.model_copy(update={"train": large}), 1, available=10**12)


def test_this_machine_holds_a_tiny_model():
    assert machine_memory() > 10**9
    require_memory(resolved_tiny(), 1)
