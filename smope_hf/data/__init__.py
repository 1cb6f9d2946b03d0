"""Images and tasks: from a data set to batches of decoded images, and the manifest that tells of them.

No model is known here. Start with `tasks`.
"""
