"""A recipe: all settings of the rounds, in a TOML file. Unless told, `rounds` takes trainer/recipes/best.toml."""

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import InputError
from pipeline.mining.options import MiningOptions, parse_shares
from pipeline.packs.packs import PackOptions
from trainer.options import TrainOptions, WarmupOptions, parse_rates

SHIPPED = Path(__file__).parent / "recipes"
SECTIONS: dict[str, Any] = {
    "warmup": WarmupOptions, "mining": MiningOptions, "packing": PackOptions, "train": TrainOptions,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """warmup: None leaves it out."""

    warmup: WarmupOptions | None = None
    mining: MiningOptions = MiningOptions()
    packing: PackOptions = PackOptions()
    train: TrainOptions = TrainOptions()


def read_recipe(name: str) -> Recipe:
    """The recipe in a .toml file, or one that ships: best, plain.

    Raises:
      InputError: naming the file and the setting that is wrong.
    """
    path = Path(name) if name.endswith(".toml") else SHIPPED / f"{name}.toml"
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
        for section, settings in told.items():
            _refuse_unknown(section, settings)
        kinds = told.get("mining", {}).get("negatives")
        if isinstance(kinds, str):
            told["mining"]["negatives"] = parse_shares(kinds)
        rates = told.get("train", {}).get("layer_rates")
        if isinstance(rates, str):
            told["train"]["layer_rates"] = parse_rates(rates)
        recipe = msgspec.convert(told, Recipe)
        # `replace` sets defaults too, which msgspec leaves to the class: JSON of the recipe is to have all of them.
        return Recipe(**{name: replace(getattr(recipe, name)) for name in told})
    except FileNotFoundError:
        shipped = ", ".join(sorted(found.stem for found in SHIPPED.glob("*.toml")))
        raise InputError(f"--recipe {name}: {path} is not there. Name a .toml file, or one of {shipped}.") from None
    except ValueError as error:  # of tomllib, of msgspec, of the options' own checks
        raise InputError(f"--recipe {path}: {error}") from None


def _refuse_unknown(section: str, settings: Any) -> None:
    """Raises ValueError: msgspec would pass over what a dataclass has no field for."""
    if section not in SECTIONS:
        raise ValueError(f"there is no [{section}]; there are {', '.join(SECTIONS)}")
    if not isinstance(settings, dict):
        raise ValueError(f"{section} must be a table of settings: write [{section}] above them")
    known = [field.name for field in fields(SECTIONS[section])]
    for name in settings:
        if name not in known:
            raise ValueError(f"there is no setting {section}.{name}; there are {', '.join(known)}")
