"""Replicas of our own application on Ray Serve, each with its part of the threads."""

import os
import signal
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "120"

import ray
from haproxy_server import part
from ray import serve


def main() -> None:
    """Serve until told to stop."""
    port, replicas = int(os.environ["CAPTION_PORT"]), int(os.environ["BENCH_SERVICES"])
    os.environ.update(part(port, replicas))
    # a replica computes on as many cores as it is given; here CAPTION_INFERENCE_THREADS says so
    ray.init("local", num_cpus=replicas + 1, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    from app.ray_serve import Captions  # noqa: PLC0415 - after the environment is set

    serve.run(Captions.options(num_replicas=replicas, autoscaling_config=None).bind())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pause()


if __name__ == "__main__":
    main()
