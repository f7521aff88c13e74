"""The sections of a run's config that are about training; `hybridtron.training.config` puts all sections together."""
