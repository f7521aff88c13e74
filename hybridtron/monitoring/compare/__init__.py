"""Several runs beside each other: loss curves, settings that differ, losses with their noise.

run.py          one run, read from its folder
noise.py        how much the last held-out losses of a run scatter
settings.py     settings that are not equal in all runs
comparison.py   all of it, with what may not be compared
tables.py       tables of the page and the terminal
plots.py        loss curves over steps, tokens, FLOPs and hours
report.py       the page, the pictures and the JSON; how a comparison is printed
"""
