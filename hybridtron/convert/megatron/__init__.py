"""Checkpoints of megatron-core's GPTModel and MambaModel, in its torch_dist format, from and to ours."""
