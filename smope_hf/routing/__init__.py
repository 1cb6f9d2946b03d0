"""Which experts fire: records of it, and the numbers that describe it.

What draws these numbers is in `reports`. Start with `patterns`.
"""
