"""Offline triplet mining: ingest, embed, select, write. Starts at `pipeline.mine`."""

import logging
import os

# Start-up messages that say nothing about the user's work; TensorFlow reads its setting when it is imported,
# Beam logs its line while it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("apitools not found"))
