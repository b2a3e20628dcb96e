"""`python -m sentei.cli`."""

import sys

from sentei.cli import main

sys.exit(main())
