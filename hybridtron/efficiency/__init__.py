"""What models cost to train and to generate with, measured on the machine at hand.

parts      what is timed: a whole model, or each distinct layer by itself
machine    rates of the machine: matrix products, memory; its memory
measure    seconds of parts, in repeats that take turns
study      models at context lengths and batch sizes: rates, memory, ratios to the first model
report/    tables, pictures, the page
"""
