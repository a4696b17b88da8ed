"""The joint training step: optimizer, sharding, step, and what it reports."""
