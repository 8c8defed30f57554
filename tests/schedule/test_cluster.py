"""The cluster that is joined, the shipped YAMLs, and a cluster over ssh on this machine."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autoaug_ray.errors import UserError
from autoaug_ray.schedule import cluster

# isort: split
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTERS = Path(__file__).parents[2] / "clusters"
LAUNCHED = ("aws", "gcp", "local")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine on which no cluster is, whatever this one is."""
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.delenv(cluster.KUBERAY, raising=False)
    monkeypatch.setattr(cluster, "HEAD", tmp_path / "ray_current_cluster")
    monkeypatch.setattr(cluster, "LAUNCHED", tmp_path / "ray_bootstrap_config.yaml")


@pytest.fixture
def head(nowhere):
    """A machine on which a cluster answers; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        cluster.HEAD.write_text(where)
        yield where


def test_this_machine_alone_where_no_cluster_is(nowhere):
    assert cluster.address() == "local" and not cluster.may_grow()
    cluster.HEAD.write_text("127.0.0.1:1")  # of a cluster that is gone
    assert cluster.address() == "local"


def test_the_cluster_that_runs_here_is_joined_unless_another_is_named(head, monkeypatch):
    assert cluster.address() == head and cluster.may_grow()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster.address() == "10.0.0.1:6379"


def test_an_address_that_another_user_left_is_not_followed(head, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    stat = Path.stat
    owner = {cluster.HEAD: 1234, cluster.HEAD.parent: 4321}

    def owned(path, **how):
        found = list(stat(path, **how))
        found[4] = owner.get(path, found[4])  # st_uid
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", owned)
    assert cluster.address() == "local"
    owner[cluster.HEAD] = 4321
    assert cluster.address() == head
    owner[cluster.HEAD.parent] = 1234
    assert cluster.address() == "local"


@pytest.mark.parametrize("where", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_said_at_once(nowhere, monkeypatch, where):
    monkeypatch.setenv("RAY_ADDRESS", where)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=f"RAY_ADDRESS: no Ray cluster answers at {where}; give"):
        cluster.join()


def test_a_head_without_ray_is_never_this_machine_alone(nowhere, monkeypatch):
    monkeypatch.setenv(cluster.KUBERAY, "1")
    with pytest.raises(UserError, match="pod of KubeRay, but no Ray answers here"):
        cluster.address()
    monkeypatch.delenv(cluster.KUBERAY)
    cluster.LAUNCHED.write_text("{}")
    with pytest.raises(UserError, match="head of a cluster, but no Ray answers here"):
        cluster.address()
    monkeypatch.setenv("RAY_ADDRESS", "local")  # asked for by name
    assert cluster.address() == "local"


def test_what_may_come_is_waited_for_and_what_cannot_is_known(head, monkeypatch):
    here = {"CPU": 2.0}
    monkeypatch.setattr(cluster, "machines", lambda: [here])
    assert cluster.most("GPU") == float("inf")  # nobody says what may come
    types = {
        "head": {"resources": {"CPU": 64}},
        "gpu": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 3},
        "never": {"resources": {"GPU": 8}, "max_workers": 0},
    }
    launched = {
        "head_node_type": "head", "available_node_types": types, "provider": {"type": "aws"},
    }  # fmt: skip
    cluster.LAUNCHED.write_text(yaml.safe_dump(launched))
    assert (cluster.most("CPU"), cluster.most("GPU")) == (4, 1)
    launched["provider"] = {"type": "local"}
    cluster.LAUNCHED.write_text(yaml.safe_dump(launched))
    assert cluster.most("GPU") == float("inf")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert (cluster.most("CPU"), cluster.most("GPU")) == (2, 0)


def test_actors_are_as_many_as_the_yaml_lets_come(head, monkeypatch):
    """3 machines x min(4 CPU / 2, 2 GPU / 1) tasks, 2 that nobody describes, of 4 in all."""
    assert cluster.room_to_come(2, 1) == 0
    types = {
        "head": {"resources": {"CPU": 64}},
        "gpu": {"resources": {"CPU": 4, "GPU": 2}, "max_workers": 3},
        "cpu": {"resources": {"CPU": 8}, "max_workers": 9},
        "cloud": {"resources": {}, "max_workers": 2},
    }
    launched = {
        "head_node_type": "head", "available_node_types": types, "provider": {"type": "aws"},
    }  # fmt: skip
    cluster.LAUNCHED.write_text(yaml.safe_dump(launched))
    assert cluster.room_to_come(2, 1) == 3 * 2 + 2 and cluster.room_to_come(8, 1) == 2
    cluster.LAUNCHED.write_text(yaml.safe_dump(launched | {"max_workers": 4}))
    assert cluster.room_to_come(2, 1) == 3 * 2 + 1
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster.room_to_come(2, 1) == 0


def test_a_forgotten_storage_is_told_on_several_machines(head, monkeypatch):
    monkeypatch.setattr(cluster, "machines", lambda: [{"CPU": 2.0}])
    cluster.check_alone("runs")  # this machine alone, though Ray was started on it
    monkeypatch.setattr(cluster, "machines", lambda: [{"CPU": 2.0}] * 2)
    with pytest.raises(UserError, match="--storage is missing: on a cluster, what goes to runs/"):
        cluster.check_alone("runs")
    monkeypatch.setattr(cluster, "machines", lambda: [{"CPU": 2.0}])
    cluster.LAUNCHED.write_text("{}")
    with pytest.raises(UserError, match="--storage is missing"):
        cluster.check_alone("runs")


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_takes_the_shipped_yaml(name):
    tree = yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())
    validate_config(prepare_config(tree))
    assert tree["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for words in tree["head_start_ray_commands"]:
        assert "0.0.0.0" not in words  # a dashboard for all to see
    for version in ("ray", "torch", "torchvision"):
        assert any(f" {version}==" in words for words in tree["setup_commands"])


def test_aws_opens_one_port_to_one_address_and_encrypts_every_disk():
    tree = yaml.safe_load((CLUSTERS / "aws.yaml").read_text())
    (rule,) = tree["provider"]["security_group"]["IpPermissions"]
    (source,) = rule["IpRanges"]
    assert rule["FromPort"] == rule["ToPort"] == 22 and source["CidrIp"].endswith("/32")
    for node in tree["available_node_types"].values():
        assert all(d["Ebs"]["Encrypted"] for d in node["node_config"]["BlockDeviceMappings"])
    assert "**/.env*" in tree["rsync_exclude"]


@pytest.mark.parametrize("name", ("aws", "gcp"))
def test_no_trial_runs_on_the_head(name):
    types = yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}


def test_kuberay_runs_the_same_versions():
    text = (CLUSTERS / "kuberay.yaml").read_text()
    spec = yaml.safe_load(text)["spec"]["rayClusterSpec"]
    setup = " ".join(yaml.safe_load((CLUSTERS / "aws.yaml").read_text())["setup_commands"])
    assert f" ray=={spec['rayVersion']} " in setup
    assert f"rayproject/ray:{spec['rayVersion']}-" in text
    torch = setup[setup.index("torch==") : setup.index(" -e ")]
    assert torch in text
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def test_ec2_takes_the_node_types_of_aws_yaml(monkeypatch):
    moto = pytest.importorskip("moto")
    boto3 = pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    tree = yaml.safe_load((CLUSTERS / "aws.yaml").read_text())
    assert tree["metadata"]["image"] == "ami-EDIT"
    with moto.mock_aws():
        for profile in ("profile", "worker_profile"):
            boto3.client("iam", "us-east-1").create_instance_profile(
                InstanceProfileName=tree["metadata"][profile]["Name"]
            )
        ec2 = boto3.client("ec2", tree["provider"]["region"])
        instances = {}
        for name, node in tree["available_node_types"].items():
            asked = node["node_config"] | {"ImageId": ec2.describe_images()["Images"][0]["ImageId"]}
            (instances[name],) = ec2.run_instances(**asked, MinCount=1, MaxCount=1)["Instances"]
    assert {name: i["InstanceType"] for name, i in instances.items()} == {
        "head": "m7i.xlarge", "gpu": "g6.xlarge",
    }  # fmt: skip
    assert [n for n, i in instances.items() if i.get("InstanceLifecycle") == "spot"] == ["gpu"]
    for instance in instances.values():
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
    profiles = {name: i["IamInstanceProfile"]["Arn"] for name, i in instances.items()}
    assert profiles["head"].endswith("-head") and profiles["gpu"].endswith("-worker")


@pytest.mark.parametrize("on_spot", (0, 2, 5))
def test_what_spot_refuses_is_started_on_demand(on_spot, monkeypatch):
    """Five machines are asked for; EC2 has `on_spot` on spot, and none at all beyond five."""
    moto = pytest.importorskip("moto")
    ClientError = pytest.importorskip("botocore.exceptions").ClientError
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    from autoaug_ray.schedule.spot import NodeLaunchException, SpotFirst

    left = {"spot": on_spot, "on demand": 5 - on_spot}

    def refuse(params, **_):
        market = "spot" if "InstanceMarketOptions" in params else "on demand"
        if not left[market]:
            error = {"Code": "InsufficientInstanceCapacity", "Message": f"no {market}"}
            raise ClientError({"Error": error}, "RunInstances")
        left[market] -= 1  # moto starts MinCount machines, which is one

    tree = yaml.safe_load((CLUSTERS / "aws.yaml").read_text())
    with moto.mock_aws():
        provider = SpotFirst(tree["provider"], "name")
        client = provider.ec2_fail_fast.meta.client
        subnet = client.describe_subnets()["Subnets"][0]["SubnetId"]
        image = client.describe_images()["Images"][0]["ImageId"]
        client.meta.events.register("provide-client-params.ec2.RunInstances", refuse)
        asked = {
            "InstanceType": "g6.xlarge", "ImageId": image, "SubnetIds": [subnet],
            "InstanceMarketOptions": {"MarketType": "spot"},
        }  # fmt: skip
        instances = provider.create_node(asked, {}, 5)
        assert [i.instance_lifecycle for i in instances.values()].count("spot") == on_spot
        assert len(instances) == 5 and "InstanceMarketOptions" in asked
        with pytest.raises(NodeLaunchException, match="no on demand"):
            provider.create_node(asked, {}, 1)
        left["on demand"] = 1
        assert len(provider.create_node(asked, {}, 3)) == 1
        client.meta.events.unregister("provide-client-params.ec2.RunInstances", refuse)


over_ssh = pytest.mark.skipif(
    sys.platform != "linux"
    or os.geteuid() != 0
    or not all(shutil.which(tool) for tool in ("sshd", "ssh", "rsync", "nc", "unshare")),
    reason="needs root, sshd, rsync, nc and unshare",
)


def tried(name, *steps):
    """Runs the script of that name, which must say that it has done all of these."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [CLUSTERS / name], env=os.environ | {"PATH": path}, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for step in steps:
        assert step in done.stdout


@over_ssh
@pytest.mark.ray
@pytest.mark.nightly
def test_up_submit_down_over_ssh():
    tried("try_local.sh", "ray up: ", "on the storage: the rows of none predefined", "ray down: ")


@over_ssh
@pytest.mark.ray
@pytest.mark.nightly
def test_trials_that_wait_start_spot_machines_on_aws():
    pytest.importorskip("moto")
    tried("try_aws.sh", "gpu g6.xlarge spot running", "gpu g6.xlarge spot terminated")
