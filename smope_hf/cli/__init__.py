"""The command line `smope`: one file a command, and what commands share.

What Python users need too is in the packages below. Start with `program`, whose `main` and `app` are offered here.
"""


def __getattr__(name: str):
    if name not in ("main", "app"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import program

    return getattr(program, name)
