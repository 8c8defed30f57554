"""python -m autoaug_ray: the command line."""

import sys

from autoaug_ray.commands import main

if __name__ == "__main__":
    sys.exit(main())
