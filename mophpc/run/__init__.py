"""A run: every rank walks its own list of visits, and rank 0 keeps the journal."""
