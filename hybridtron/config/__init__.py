"""The config engine: strict typed schemas, YAML, composition, and errors that name the key, the value and the cure.

schema.py      Strict, the base of every section's config; problem() and dispatch() for validators
yaml_text.py   YAML text to plain values and back
compose.py     `base:` files, dotted overrides, and where each value came from
load.py        load(path, overrides, schema), build(mapping, schema), dump(config)
explain.py     validation errors as one line each
reference.py   the Markdown page of all keys
type_words.py  types and values in the words of a YAML author
nearest.py     the nearest right name

The schemas themselves stand beside what they configure.
"""
