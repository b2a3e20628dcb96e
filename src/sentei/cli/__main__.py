"""`python -m sentei.cli`."""

import sys

from sentei_main import main

sys.exit(main())
