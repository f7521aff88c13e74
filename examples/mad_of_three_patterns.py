"""Score three small architectures on two of the MAD tasks: seconds, and no evidence. `preset="search"` takes hours.

Names of layers are mad-lab's: `mamba` is Mamba-1.

python examples/mad_of_three_patterns.py
"""

import hybridtron as ht

PATTERNS = ["2*(attention swiglu)", "2*(mamba swiglu)", "mamba swiglu attention swiglu"]
TASKS = ["in-context-recall", "selective-copying"]

if __name__ == "__main__":
    for pattern in PATTERNS:
        score = ht.mad.score(pattern, preset="smoke", tasks=TASKS)
        print(f"{pattern:32s} accuracy {score.overall['micro'].mean:.3f}, state {score.state_size:,}")
