"""What several commands need: quiet libraries."""

import sys

from ..base.printing import make_logs_printable


def be_quiet():
    """Keep progress bars to terminals, and the libraries' notes to those who ask for them."""
    import datasets
    import huggingface_hub
    import transformers

    make_logs_printable(("datasets", "huggingface_hub", "transformers"))
    transformers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
