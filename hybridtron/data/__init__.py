"""Text in, token batches out.

Preparing a corpus (no torch, several processes):
    corpus            prepare(): files and folders to train.bin/.idx, valid.bin/.idx and a report
    standard_library  prepare_standard_library(): the corpus that needs no download
    sources           which files belong to a corpus
    documents         the text inside them
    shards, merge    the work: cut into shards, encoded, joined
    report            what was prepared: documents, tokens, bytes, damage
    tokenizer         bytes, or a Hugging Face tokenizer.json
    indexed_format    Megatron's .bin/.idx files: written and checked

Reading it for training:
    config            the `data` section of a run's config
    dataset           TokenDataset: the infinite training order and the fixed evaluation windows
    batches           micro-batches of one data-parallel rank
    bigram            the yardstick that a model's validation bits per byte are compared with
"""
