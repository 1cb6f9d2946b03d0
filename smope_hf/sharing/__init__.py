"""Checkpoints, and their way to the Hub and back: folders of tasks, model cards, what describes a checkpoint.

Nothing trains or draws here; a card is given its picture. Start with `checkpoint` and `hub`.
"""
