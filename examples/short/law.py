import hybridtron as ht

fit = ht.laws.fit("parametric", "tests/laws/data/chinchilla_fig4.csv", where={"in_fit": 1})
print(fit.parameters, fit.intervals)
