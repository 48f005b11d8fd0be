"""A Beam worker on an engine's machine: `triplet-miner-worker`, the command of Beam's PROCESS environment.

A Java runner starts it once per task manager or executor, with the flags of Beam's container contract
(https://github.com/apache/beam/blob/master/model/fn-execution/src/main/proto/org/apache/beam/model/fn_execution/v1/beam_provision_api.proto),
and it becomes Beam's own worker. It fetches no packages: whatever the job needs is installed where this is. It ends
when the runner that started it is gone.
"""

import argparse
import os

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc, endpoints_pb2
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format, text_format


def main() -> None:
    parser = argparse.ArgumentParser(prog="triplet-miner-worker", description=__doc__.splitlines()[0])
    for name in ("id", "logging_endpoint", "artifact_endpoint", "provision_endpoint", "control_endpoint"):
        parser.add_argument(f"--{name}", required=name in ("id", "provision_endpoint"))
    # Runners pass further flags of the contract, which differ with their version.
    arguments, _ = parser.parse_known_args()
    with grpc.insecure_channel(arguments.provision_endpoint) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        info = stub.GetProvisionInfo(request, metadata=[("worker_id", arguments.id)]).info
    for name in ("logging", "control"):
        url = getattr(info, f"{name}_endpoint").url or getattr(arguments, f"{name}_endpoint")
        descriptor = text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))
        os.environ[f"{name.upper()}_API_SERVICE_DESCRIPTOR"] = descriptor
    os.environ["WORKER_ID"] = arguments.id
    os.environ["PIPELINE_OPTIONS"] = json_format.MessageToJson(info.pipeline_options)
    os.environ["RUNNER_CAPABILITIES"] = " ".join(info.runner_capabilities)
    sdk_worker_main.main([])
