"""The functions behind `import hybridtron as ht`: configs, models, training, costs. They need no process groups."""
