"""EC2 machines on spot, and on demand where there is no spot; for the head of clusters/aws.yaml.

Ray 2.60 has no such fallback: a type of machine that EC2 refuses at once is asked for again every
five seconds, whatever types of lower priority there are.
"""

from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

MARKET = "InstanceMarketOptions"
"""The field of a node_config, as in EC2's RunInstances, without which a machine is on demand."""


class SpotFirst(AWSNodeProvider):
    """Ray's provider of EC2 machines, which asks for machines on demand where there is no spot."""

    def _create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        """The instances that were started, by their ids.

        EC2 may start fewer than it is asked for. The rest is asked for again until it is refused,
        then on demand. Raises NodeLaunchException if nothing could be started.
        """
        instances: dict[str, Any] = {}
        while len(instances) < count:
            try:
                missing = count - len(instances)
                instances |= super()._create_node(node_config, tags, missing)  # type: ignore[no-untyped-call]
            except NodeLaunchException:
                if MARKET in node_config:
                    node_config = {k: v for k, v in node_config.items() if k != MARKET}
                elif instances:
                    break
                else:
                    raise
        return instances
