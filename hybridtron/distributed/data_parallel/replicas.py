"""The data-parallel replicas of a model's runs of layers: megatron-core's buffers of gradients and parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.enums import ModelType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from hybridtron.distributed.config import ParallelConfig
from hybridtron.tensors import TensorSpec

BUCKET_ELEMENTS = 40_000_000  # gradients reduced, or parameters gathered, in one message where these overlap


def make_replicas(
    chunks: Sequence[nn.Module], specs: dict[str, TensorSpec], config: TransformerConfig, parallel: ParallelConfig
) -> list[DistributedDataParallel]:
    """Wrap runs of layers, whose parameters become those of the first data-parallel process."""
    for index, chunk in enumerate(chunks):
        annotate(chunk, specs, config.sequence_parallel, index if len(chunks) > 1 else None)
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=parallel.distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        bucket_size=BUCKET_ELEMENTS,  # without overlap of no effect: one bucket for each format
    )
    # With buckets in every chunk: without, megatron-core sends bf16 and fp32 in one call, which gloo gets wrong.
    replicas = [DistributedDataParallel(config, ddp, chunk) for chunk in chunks]
    for replica in replicas:
        replica.broadcast_params()
    if parallel.overlap_grad_reduce:
        no_sync = [replica.no_sync for replica in replicas]  # in all micro-batches but the last
        config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    return replicas


def in_order_of_use(replica: DistributedDataParallel, buckets: Sequence[Any]) -> list[Any]:
    """Sort buckets by their first parameters: as a forward pass needs them, and a backward pass, from the last on,
    completes them."""
    positions = {parameter: position for position, parameter in enumerate(replica.module.parameters())}
    return sorted(buckets, key=lambda bucket: min(positions[parameter] for parameter in bucket.params))


def annotate(model: Any, specs: dict[str, TensorSpec], sequence_parallel: bool, chunk: int | None) -> None:
    """Set the attributes by which megatron-core knows shards, and copies that see only part of the sequence."""
    stage = getattr(model, "stage", None)
    model.model_type = ModelType.encoder_or_decoder
    model.vp_stage = chunk
    model.pre_process, model.post_process = (stage.is_first, stage.is_last) if stage else (True, True)
    copied = bool(getattr(model, "last_stage_embeds", False))
    model.share_embeddings_and_output_weights = copied  # by which it adds up the gradients of first and last stage
    model.shared_embedding_or_output_weight = lambda: model.embedding.weight if copied else None
    if not hasattr(model, "set_input_tensor"):
        model.set_input_tensor = lambda tensor: None
    for name, parameter in model.named_parameters():
        spec = specs[name]
        attributes: dict[str, Any] = {
            "tensor_model_parallel": bool(spec.parts),
            "partition_dim": spec.axis if spec.parts else -1,
            "partition_stride": 1,
            "sequence_parallel": sequence_parallel and not spec.parts,
            "allreduce": not spec.experts,
            "full_name": name,
            "spec": spec,
            "decay": spec.decay,
            "shared_embedding": copied and name.startswith("embedding."),
            "shared": name.startswith("embedding.") and stage is not None and not stage.is_first,
        }
        for key, value in attributes.items():
            setattr(parameter, key, value)
