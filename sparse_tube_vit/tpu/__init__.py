"""What a program compiled for TPUs costs, read on a machine that has none."""
