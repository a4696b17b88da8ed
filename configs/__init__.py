"""Config files, one an experiment."""
