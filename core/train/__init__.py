"""Training: the loop, what computes for it, and what saves a run from what can go wrong."""

import logging

# At its import bitsandbytes looks on the hub for a faster product in 4 bit for CPUs with AVX512-BF16, which
# passes no gradient on and is not used here; that it was not found would stand in every run's log.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
