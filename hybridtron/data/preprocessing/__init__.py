"""A corpus of text into token files, by several processes and without torch.

corpus            prepare(): all of it
standard_library  prepare_standard_library(): the corpus that needs no download
sources           which files belong to a corpus
documents         lines of .jsonl, plain or compressed
long_lines, text  texts that are longer than memory, in blocks
shards, merge     the work: cut into shards, encoded, joined
work_folder       where that happens, also after a kill
report            what was prepared: documents, tokens, bytes, damage
"""
