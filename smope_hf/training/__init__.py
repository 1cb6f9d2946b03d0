"""A run: the trainer and its phases, going on after an interruption, going on from a checkpoint, and a run's health.

Neither pictures nor HTML are made here; callbacks of `reports` do that. Start with `trainer`.
"""
