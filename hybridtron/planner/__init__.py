GPUS_PER_NODE = 8  # processes of a node, where nobody says how many
