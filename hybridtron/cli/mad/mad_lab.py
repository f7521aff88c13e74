"""What takes the place of flags of mad-lab's programs."""

# Flags of mad-lab's train.py and benchmark.py that are none here, by what does the same.
_OF_MAD_LAB = {
    "its name with _ and =, such as vocab_size=32, in `mad run` after --set": (
        "vocab-size", "seq-len", "num-train-examples", "frac-noise", "noise-vocab-size", "num-tokens-to-copy",
    ),
    "no flag: it is as in the protocol": (
        "k-motif-size", "v-motif-size", "multi-query", "num-test-examples", "target-ignore-index", "backbone",
        "optimizer", "min-lr", "plateau-patience", "plateau-factor",
    ),
    "--preset: paper has a cosine, madlab what mad-lab's code does": ("scheduler",),
    "--preset search, which stops where accuracy and loss gain no more": ("early-stop", "stop-patience"),
    "--device cpu, cuda or cuda:1": ("accelerator",),
    "--device cuda:1, and a call with an --out of its own for each GPU": ("devices", "gpus"),
    "--nproc": ("cpus", "num-cpus-trial", "num-trials-gpu"),
    "no flag: parameters are float32": ("precision",),
    "--out": ("log-base-path", "logs-path"),
    "no flag: results are rows in --out": ("log-to-csv", "log-to-wandb", "wandb-project", "save-checkpoints"),
    "--data": ("data-path",),
    "no flag: examples are in memory": (
        "num-data-workers", "persistent-data-workers", "persistent-workers", "ray-tmp-path",
    ),
}  # fmt: skip
MAD_LAB_FLAGS = {f"--{flag}": same for same, flags in _OF_MAD_LAB.items() for flag in flags}
