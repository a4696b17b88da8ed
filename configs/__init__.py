"""Config files, one an experiment; `common` has what they share."""
