# This package with its locked requirements: what Beam's workers run in (--sdk_container_image), and our commands.
FROM python:3.11-slim
# Beam's launcher, in the version of requirements/default.lock.
COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam /opt/apache/beam
# Without it the launcher makes an environment of its own for each worker.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1
WORKDIR /opt/triplet-miner
COPY requirements/default.lock requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/default.lock
COPY setup.py pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY trainer trainer
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
ENTRYPOINT ["/opt/apache/beam/boot"]
