"""Command line: python -m sharp_vae COMMAND …, wherever it starts."""

import sys

from sharp_vae import main

sys.exit(main())
