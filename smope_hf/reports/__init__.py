"""What people look at: plots, the report of a run, comparisons, tables on the terminal.

What is drawn is read from files and results; no model is loaded for use. Start with `results` and `run_report`.
"""
