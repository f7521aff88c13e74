"""The config of an imported run, whatever it is imported from."""

import pytest

from hybridtron.convert.new_run import imported_config

MODEL = {"hidden_size": 32, "vocab_size": 64, "blocks": {"a": {"type": "mamba1"}}, "pattern": "a"}


@pytest.mark.parametrize(("folder", "name"), [("llama", "llama"), ("my model", "my-model"), ("_", "imported")])
def test_the_run_is_named_after_its_folder(tmp_path, folder, name):
    config = imported_config(tmp_path / folder, MODEL, 128)
    assert (config.name, config.data.seq_len, config.data.train) == (name, 128, None)
