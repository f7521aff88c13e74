"""Checkpoints of a run while it trains: `hybridtron.distributed.checkpoint` writes and reads their tensors.

save_schedule  after which steps a run is saved
saver          Saver: written in the background; what happens where that fails
restore        the newest checkpoint that all processes can read, or the weights of another run
"""
