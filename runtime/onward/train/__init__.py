"""Training: fit, evaluate, predict, and what they need."""
