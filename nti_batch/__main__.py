"""`python -m nti_batch` is `nti-batch`."""

import sys

from nti_batch.cli import main

sys.exit(main())
