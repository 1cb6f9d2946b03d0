"""What every other package stands on: names and texts made fit to be shown, the one door to the terminal.

Here is nothing that reads files or knows what a task or a model is. Start with `printable` and `printing`.
"""
