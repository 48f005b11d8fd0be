from pathlib import Path

from setuptools import find_packages, setup

COMMANDS = ("ingest", "init", "warmup", "mine", "train", "rounds", "evaluate", "embed", "report", "records")

setup(
    name="offline-triplet-miner",
    version="0.2.0",
    description="Hard and semi-hard triplets, mined exactly over the whole corpus, for TensorFlow and Keras",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["triplet loss", "hard negative mining", "metric learning", "embeddings", "tensorflow", "apache beam"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["pipeline*", "trainer*"]),
    package_data={
        "pipeline": ["py.typed"], "pipeline.reporting": ["templates/*"], "trainer": ["py.typed", "recipes/*.toml"],
    },
    python_requires=">=3.11",
    install_requires=[
        "apache-beam>=2.73,<3",
        "duckdb>=1.4.1,<3",
        "fsspec>=2024.6",
        "google-crc32c>=1.6",
        "jinja2>=3.1",
        "keras>=3.11,<4",
        "msgspec>=0.19",
        "numba>=0.60",
        "numpy>=1.26,<3",
        "pillow>=10.1",
        "psutil>=5.9.4",
        "pyarrow>=15",
        "rich>=14.3",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        "tensorboard>=2.18",
        "tensorflow>=2.18,<2.22",
        "threadpoolctl>=3.5",
        "tyro>=1.0",
        "universal-pathlib>=0.3",
    ],
    entry_points={
        "console_scripts": [f"triplet-{name} = pipeline.process.commands:console" for name in COMMANDS],
    },
    extras_require={
        "bench": ["faiss-cpu>=1.9", "matplotlib>=3.9"],
        "gs": ["gcsfs>=2024.6"],
        "hub": ["keras-hub>=0.32,<0.33", "tensorflow-text>=2.20.1,<2.22"],
        "pandas": ["pandas>=2"],
        "s3": ["s3fs>=2024.6"],
        "gpu": ["tensorflow[and-cuda]>=2.18,<2.22"],
        "test": [
            "hypothesis>=6.100", "mypy>=1.13", "pandas>=2", "pytest>=8", "pytest-xdist>=3.6", "ruff>=0.8",
            "tensorflow-datasets>=4.9.4", "tfrecord>=1.14.6",
        ],
        "tfds": ["tensorflow-datasets>=4.9.4"],
        "web": ["selenium>=4.20"],
    },
)
