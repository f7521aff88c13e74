"""A run on disk.

folder            the files, checkpoints and lock of a run folder
submitted         the job on SLURM that is to train it
missing           what to say where there is none
resume            what a run starts from, and what may change meanwhile
init_map          weights of another run, by layers and blocks of both
train_state       what a checkpoint holds besides tensors
environment_info  environment.json
attempts          attempts.jsonl
effective_time    restarts, lost steps and effective time, from the attempts
summary           the last lines of the output, from summary.json
"""
