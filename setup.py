from setuptools import setup

COMMANDS = ("ingest", "mine", "embed", "rounds", "records", "report", "doctor", "train", "evaluate")

setup(
    name="triplet-miner",
    version="0.1.0",
    description="Hard and semi-hard triplets, mined exactly over the whole corpus, for TensorFlow",
    packages=["pipeline", "trainer"],
    package_data={"pipeline": ["templates/*"]},
    python_requires=">=3.11",
    install_requires=[
        "apache-beam>=2.70,<3",
        "fsspec>=2024.6",
        "google-crc32c>=1.5",
        "jinja2>=3.1",
        "numba>=0.60",
        "numpy>=1.26,<3",
        "packaging>=23",
        "pillow>=10",
        "pyarrow>=14",
        "rich>=13",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        "tensorboard>=2.18",
        "tensorflow>=2.18,<2.22",
        "threadpoolctl>=3.5",
        "universal-pathlib>=0.2.6",
    ],
    entry_points={
        "console_scripts": [
            *(f"triplet-{name} = pipeline.command:console" for name in COMMANDS),
            "triplet-miner-worker = pipeline.sdk_worker:main",
        ]
    },
    extras_require={
        "bench": ["faiss-cpu>=1.9", "matplotlib>=3.9"],
        "gs": ["gcsfs>=2024.6"],
        "hdfs": ["pyarrow>=14"],
        "s3": ["s3fs>=2024.6"],
        "gpu": ["tensorflow[and-cuda]>=2.18,<2.22"],
        "test": [
            "hypothesis>=6.100", "mypy>=1.13", "pytest>=8", "ruff>=0.8", "tensorflow-datasets>=4.9.4",
            "tfrecord>=1.14.6",
        ],
        "tfds": ["tensorflow-datasets>=4.9.4"],
        "web": ["selenium>=4.20"],
    },
)
