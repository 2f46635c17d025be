"""`python -m selfspec.cli` is `selfspec`."""

import sys

from selfspec.cli import main

sys.exit(main())
