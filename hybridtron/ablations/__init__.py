"""Ablations: many training runs from one file, compared over seeds.

config.py       the file: base run, axes, seeds, constraints, equal size, rules
axes.py         levels of each axis, and the combinations that become cells
expressions.py  constraints as comparisons of keys and numbers, without eval
equal_size.py   a key adjusted so that a cell is as large as its reference
rules.py        steps from a budget; keys that follow power laws
cells.py        a combination as a resolved config with a stable name
study.py        the study's folder: what is finished, what is missing, what failed
local.py        runs in processes of this machine
results.py      one row per cell and seed
compare.py      differences from the reference, with a paired test over seeds
run.py          from a config to its page
report/         tables, pictures, the page
"""
