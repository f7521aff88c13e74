import hybridtron as ht, torch  # noqa: E401, I001

model = ht.build_model("2*(mamba mlp) attn mlp")
model.loss(torch.randint(256, (4, 129))).backward()
torch.optim.AdamW(model.parameters(), lr=1e-3).step()
