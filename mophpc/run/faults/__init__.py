"""Signals that stop a run, and ranks that are lost or hang."""
