"""The checker: one process that finds out which backends work, and where names lead."""
