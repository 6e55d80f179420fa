"""`python -m mixwell`: the console command."""

import sys

from mixwell.cli import main

sys.exit(main())
