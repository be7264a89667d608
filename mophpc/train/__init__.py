"""What happens on a rank during a visit, and the state that survives it; torch."""
