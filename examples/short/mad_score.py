import hybridtron as ht

print(ht.mad.score("mh-hyena swiglu", preset="smoke", tasks=["in-context-recall"]).overall)
