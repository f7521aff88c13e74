"""From a run's config to its checkpoints.

config          RunConfig: all sections of a run's config
sections/       those of them that are about training
run             train(): a run in its folder; proxy_run: one that writes nothing, for its loss
starting        what is checked and written before the first step
corpus          the tokens of a run
build           the model on its backend, and the engine that trains it
loop            Trainer: update, evaluate, save, stop
lr_schedule     the learning rate of a step
callbacks/      what takes part in training besides
checkpointing/  when and how the run is saved, and restored
run_folder/     a run on disk
process/        the GPU, signals and heartbeat of this process
phases, throughput, profiling/  where the time goes
validation/     refusals that need tensors' shapes, memory or the number of processes
single_process  Model, load(): a trained model without process groups; evaluate: its held-out loss
reference       the page of all keys
"""
