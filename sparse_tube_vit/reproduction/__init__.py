"""The paper's tables, tested again: rows, sizes, the runs of them, and the document."""
