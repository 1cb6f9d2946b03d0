"""Files that are whole or absent, and files from strangers read within limits.

Here are checksums, locks, JSON and safetensors, and the guards of configs and weights; nothing that trains or loads a
model. Start with `files` for writing, and with `safe_json` and `checkpoint_guard` for reading.
"""
