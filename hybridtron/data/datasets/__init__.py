"""Token files and the order of the samples in them, by number: nothing here knows of steps or processes.

indexed_dataset  Megatron's .bin/.idx files: written, checked, mapped into memory
document_starts  where documents begin in them
token_dataset    TokenDataset: the endless training order and the fixed evaluation windows of one source
blended_dataset  BlendedDataset: several sources in the proportions of a stage
proportions      whose turn it is
hashing          pseudo-random numbers and permutations without state
"""
