"""Run studies, all of their trials in one Ray Tune run each, and write their reports.

python run_all.py                       the quick start
python run_all.py --help                what else it can do
"""

import sys

from autoaug_ray.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["run"]))
