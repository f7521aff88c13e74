"""Every primitive as a run folder, through the verbs to a folder of transformers and back, bitwise."""

import pytest
import torch

from hybridtron.config.load import build
from hybridtron.convert.exporting import to_hf
from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.convert.formats.source import TensorInfo
from hybridtron.convert.importing import from_hf
from hybridtron.convert.mapping.parts import stored_shapes
from hybridtron.convert.new_run import new_run
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import read_config
from hybridtron.training.run_folder.train_state import TrainState
from tests.mixers.test_contract import CASES, model_config

SECTIONS = {
    "name": "round_trip",
    "data": {"train": "none", "seq_len": 32, "tokenizer": "byte"},
    "train": {"steps": 1, "global_batch_size": 1},
    "optimizer": {"lr": 1e-3},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_every_primitive_goes_to_hugging_face_and_back_bitwise(name, dtype, tmp_path):
    model = {**model_config(name).model_dump(mode="json", serialize_as_any=True), "vocab_size": 260}
    precision = {"format": "bf16" if dtype == torch.bfloat16 else "fp32"}
    config = build({**SECTIONS, "model": model, "precision": precision}, RunConfig)
    generator = torch.Generator().manual_seed(0)
    written = {key: torch.randn(shape, generator=generator) for key, shape in stored_shapes(config.model).items()}
    written = {key: value.to(dtype) for key, value in written.items()}
    tensors = {key: TensorInfo(tuple(value.shape), dtype) for key, value in written.items()}
    with new_run(tmp_path / "run", config, TrainState(), tensors) as sink:
        for key, value in written.items():
            sink.write(key, value)
    to_hf(tmp_path / "run", tmp_path / "hf", architecture="hybridtron", logits="never")
    from_hf(tmp_path / "hf", tmp_path / "back", logits="never")
    back = CheckpointSource(tmp_path / "back" / "step_00000000")
    assert back.tensors == tensors
    assert all(torch.equal(back.read(key), value) for key, value in written.items())
    again = read_config(tmp_path / "back")
    assert again.model.blocks == config.model.blocks
    assert again.precision.format == config.precision.format
