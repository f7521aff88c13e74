import hybridtron as ht

model = ht.load("checkpoints/quickstart")
print(model.generate(["def main(", "import ", "class "], max_tokens=20))
