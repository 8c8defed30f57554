#!/usr/bin/env bash
# Tries clusters/local.yaml on this machine, over a real sshd: ray up, ray submit, what is on the
# storage, ray down; and says how long each step took. What it needs: private_sshd.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
. clusters/private_sshd.sh

# What local.yaml asks its user to edit; no workers; a Ray that fits beside others on this machine;
# and instead of installing torch once more, the one that is here.
python - "$work" "$name" "$port" "$gcs_port" <<'END'
import sys
import yaml

work, name, port, gcs_port = sys.argv[1:]
tree = yaml.safe_load(open("clusters/local.yaml"))
tree["cluster_name"] = name
tree["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
tree["auth"] = {
    "ssh_user": name, "ssh_private_key": f"{work}/key", "ssh_proxy_command": f"nc %h {port}"
}
tree["min_workers"] = tree["max_workers"] = 0
install = tree["setup_commands"].pop()
assert "pip install" in install
tree["setup_commands"].append("echo 'export PYTHONPATH=~/autoaug-ray' >> ~/.bashrc")
stop, start = tree["head_start_ray_commands"]
assert "--port=6379" in start
start = start.replace("6379", gcs_port)
tree["head_start_ray_commands"] = [stop, start + " --num-cpus=2 --object-store-memory=100000000"]
yaml.safe_dump(tree, open(f"{work}/local.yaml", "w"))
END
step "ray up" ray up -y --no-config-cache "$work/local.yaml"
grep -q "authentication is enabled" "$work/log"
# The words go to a shell on the head as they are: what it would expand is quoted once more.
step "ray submit" ray submit "$work/local.yaml" run_all.py -- search_spaces/quickstart.yaml \
  --out "$work/storage" --seeds 1 --set "'methods={none: , predefined: }'" \
  --set train.epochs=1 --set train.iters_per_epoch=2
python - "$work/storage/quickstart" <<'END'
import sys
from pathlib import Path

from autoaug_ray.store.folder import Folder

place = Path(sys.argv[1])
done = sorted(row["label"] for row in Folder(place).read_rows() if row["finished"])
assert done == ["none", "predefined"], done
assert (place / "report.html").stat().st_size > 10_000
print("on the storage: the rows of", *done, "and the report")
END
step "ray down" ray down -y "$work/local.yaml"
# On the head of a launched cluster whose Ray is gone, a study must not run on the head alone.
cp "$work/home/ray_bootstrap_config.yaml" "$HOME"
if PYTHONPATH=. python run_all.py --out "$work/none" > "$work/log" 2>&1; then exit 1; fi
grep "no Ray answers here" "$work/log"
