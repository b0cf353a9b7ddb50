"""``python -m tlt_runner`` is ``tlt``."""

from tlt_runner.cli import main

if __name__ == "__main__":
    main()
