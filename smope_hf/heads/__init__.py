"""Class statistics and what heads are made of them: closed forms, samples, and following the drift of features.

Plain tensors in, plain tensors out. Start with `alignment`.
"""
