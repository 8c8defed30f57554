#!/usr/bin/env bash
# Tries clusters/aws.yaml on this machine, against moto's imitation of AWS and a real sshd that is
# the head: ray up, ray submit of trials that wait for a GPU, which machines they make the head ask
# for, ray down; and says how long each step took. The workers never join: moto's machines are rows
# in a table. What it needs: private_sshd.sh, and moto[server] and boto3.
set -euo pipefail
cd "$(dirname "$0")/.."
. clusters/private_sshd.sh

aws=127.0.0.1:$(free_port)
keys="AWS_ACCESS_KEY_ID=nobody AWS_SECRET_ACCESS_KEY=nobody AWS_EC2_METADATA_DISABLED=true"
export AWS_ENDPOINT_URL=http://$aws $keys
echo "export AWS_ENDPOINT_URL=http://$aws $keys" >> "$work/home/.bashrc"
# The head is told addresses of workers that are nobody's, or somebody else's.
echo "ProxyCommand false" > "$work/home/.ssh/config"
python -m moto.server -H 127.0.0.1 -p "${aws#*:}" > "$work/moto.log" 2>&1 &
started+=($!)
until nc -z 127.0.0.1 "${aws#*:}"; do
  kill -0 $!
  sleep 0.2
done

# What aws.yaml asks its user to edit and to make; a key pair under Ray's own name, which Ray then
# takes; the way to the sshd; a Ray that fits beside others on this machine; and instead of
# installing torch once more, the one that is here.
python - "$work" "$name" "$port" "$gcs_port" <<'END'
import shutil
import sys
import boto3
import yaml

work, name, port, gcs_port = sys.argv[1:]
text = open("clusters/aws.yaml").read()
assert "ami-EDIT" in text
tree = yaml.safe_load(text.replace("ami-EDIT", "ami-dca37ea5"))  # one of moto's
region = tree["provider"]["region"]
iam = boto3.client("iam", region)
for profile in (tree["metadata"][kind]["Name"] for kind in ("profile", "worker_profile")):
    iam.create_role(RoleName=profile, AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName=profile)
    iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=profile)
boto3.client("s3", "us-east-1").create_bucket(Bucket="bucket")
pair = f"ray-autoscaler_{region}"
boto3.client("ec2", region).import_key_pair(
    KeyName=pair, PublicKeyMaterial=open(f"{work}/key.pub", "rb").read()
)
shutil.copy(f"{work}/key", f"{work}/laptop/.ssh/{pair}.pem")
tree["auth"] = {"ssh_user": name, "ssh_proxy_command": f"nc 127.0.0.1 {port}"}
apt, venv, path, install = tree["setup_commands"]
assert "apt-get" in apt and "pip install" in install
to_package = "echo 'export PYTHONPATH=~/autoaug-ray' >> ~/.bashrc"
tree["setup_commands"] = [venv, path, to_package]
stop, start = tree["head_start_ray_commands"]
assert "--port=6379" in start
start = start.replace("6379", gcs_port)
tree["head_start_ray_commands"] = [stop, start + " --object-store-memory=100000000"]
yaml.safe_dump(tree, open(f"{work}/aws.yaml", "w"))
END
step "ray up" ray up -y --no-config-cache "$work/aws.yaml"

# What moto has: `waiting` until a GPU is asked for, and nothing more for a while; or `ended`.
cat > "$work/machines.py" <<'END'
import sys
import time
import boto3
import yaml

ec2 = boto3.client("ec2", yaml.safe_load(open("clusters/aws.yaml"))["provider"]["region"])


def machines():
    """Type, market and state of each, in the order in which they were asked for."""
    found = [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    return [
        (
            next(t["Value"] for t in i["Tags"] if t["Key"] == "ray-user-node-type"),
            i["InstanceType"], i.get("InstanceLifecycle", "on demand"), i["State"]["Name"],
        )
        for i in sorted(found, key=lambda i: i["LaunchTime"])
    ]


head = ("head", "m7i.xlarge", "on demand")
if sys.argv[1] == "waiting":
    assert machines() == [(*head, "running")], machines()
    end = time.monotonic() + 180
    while len(machines()) == 1:
        assert time.monotonic() < end, "no trial made the head ask for a machine"
        time.sleep(0.5)
    time.sleep(20)  # time for the head to ask for more
else:
    assert {state for *_, state in machines()} == {"terminated"}, machines()
first, *workers = machines()
assert first[:3] == head, first
assert [w[:3] for w in workers] == [("gpu", "g6.xlarge", "spot")] * 4, workers
for machine in machines():
    print("   ", *machine)
END
ray submit "$work/aws.yaml" run_all.py -- search_spaces/quickstart.yaml \
  --storage "'s3://bucket/runs?endpoint_override=$aws&scheme=http'" --seeds 2 \
  --set "'methods={none: , predefined: }'" --set resources.gpus=1 > "$work/submit.log" 2>&1 &
submit=$!
started+=($submit)
waited() {
  python "$work/machines.py" waiting && kill -0 $submit || { cat "$work/submit.log"; return 1; }
}
step "trials that wait make the head ask for machines" waited
cat "$work/log"
step "ray down" ray down -y "$work/aws.yaml"
python "$work/machines.py" ended
