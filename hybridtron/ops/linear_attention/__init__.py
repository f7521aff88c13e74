"""Linear recurrences with matrix states: linear attention, GLA, RWKV-6 and the gated delta rule."""
