"""Settings of a run: what they are called, what they may be, and how recipes are read.

Neither data nor models are loaded here. Start with `training_args`.
"""
