"""Text in, token batches out.

Preparing a corpus (no torch, several processes):
    corpus            prepare(): files and folders to train.bin/.idx, valid.bin/.idx and a report
    standard_library  prepare_standard_library(): the corpus that needs no download
    sources           which files belong to a corpus
    documents         lines of .jsonl, plain or compressed
    long_lines, text  texts that are longer than memory, in blocks
    shards, merge     the work: cut into shards, encoded, joined
    report            what was prepared: documents, tokens, bytes, damage
    tokenizer         bytes, or a Hugging Face tokenizer.json
    unreachable       such a file without a way from text to the end-of-document token
    windows           long texts encoded in windows
    indexed_format    Megatron's .bin/.idx files: written and checked

Reading it for training:
    config            the `data` section of a run's config
    dataset           TokenDataset: the infinite training order and the fixed evaluation windows
    batches           micro-batches of one data-parallel rank
    loader            what gives a training step its micro-batches: memory-mapped files, or
    dali              NVIDIA DALI
    bigram            the yardstick that a model's validation bits per byte are compared with
"""
