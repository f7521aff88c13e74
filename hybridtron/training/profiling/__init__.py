"""`hybridtron train --profile`: where the time of some steps goes.

    steps    which steps are profiled
    clock    a clock that is always in one part of a step; NVTX ranges on CUDA
    parts    the places of training at which the clock changes parts, set up for the profiled steps alone
    result   the table and its files

The callback `training/callbacks/profiler.py` uses them.
"""
