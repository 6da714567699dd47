"""`python -m esdllm`: the command `esdllm`."""

import sys

from esdllm.cli import main

if __name__ == "__main__":
    sys.exit(main())
