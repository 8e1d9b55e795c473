"""`python -m ollama_tune.tui`."""

import sys

from ollama_tune.tui.cli import main

sys.exit(main())
