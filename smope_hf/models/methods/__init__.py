"""One file a prompt method, and one table of them all.

Start with `base`, which says what a method fills in; `table` has the names.
"""
