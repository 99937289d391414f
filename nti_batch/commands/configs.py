"""`nti-batch configs`."""

from nti_batch.exit_codes import DONE
from nti_batch.jobs.configs import describe_config, ready_configs
from nti_batch.terminal import print_lines


def configs() -> int:
    """List the ready configurations, each with the name that `--config` takes."""
    ready = ready_configs()
    width = max(map(len, ready))
    print_lines(f"{name:{width}}  {describe_config(path)}" for name, path in ready.items())
    return DONE
