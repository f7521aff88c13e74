import hybridtron as ht

model = ht.build_model("2*(mamba mlp) attn mlp")
print(model.logits([[1, 2, 3]]).shape, model.loss([1, 2, 3]).item(), len(model.hidden([1, 2, 3])))
