"""``python -m drupe``."""

from drupe.cli import main

raise SystemExit(main())
