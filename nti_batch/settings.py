"""Settings of a run: what changes its results or the names of its files, typed, as `run.json` keeps it.

The keys in the file are the flags of the job: `model.num_steps` in the file is `--model.num_steps`. They are written
and read one by one, so that renaming a field here changes no file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, cast, get_args

from nti_batch.diffusion.edit_settings import FIRST_SETTINGS, MAX_DILATION, NUMBERS, EditSettings, Proximal
from nti_batch.diffusion.rounding import Storage
from nti_batch.diffusion.settings import MAX_SEED, InversionSettings, Method, NullInit, Solver
from nti_batch.json_object import Json, JsonObject
from nti_batch.models.source import Lora, ModelSource, Precision
from nti_batch.records import Fit

MAX_STEPS = 999
MAX_SIDE = 1 << 14
MAX_UNITS = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class InversionRunSettings:
    """Settings of a run of `nti-batch invert`."""

    source: ModelSource
    fingerprint: str | None
    """Fingerprint of the model's files; None if it is not known."""

    precision: Precision
    num_steps: int
    optimize_pooled: bool
    inversion: InversionSettings
    caption: str
    height: int
    width: int
    fit: Fit = "crop"
    """How images are fitted to height and width."""

    units_per_shard: int
    is_folder: bool
    """Whether the input is a folder of images; otherwise it is shards."""

    storage: Storage

    def to_json(self) -> dict[str, Json]:
        """The settings as `run.json` holds them."""
        method, source = self.inversion, self.source
        # only 'ddpm' has it, which came later than the other methods
        noise_seed: dict[str, Json] = {"noise_seed": method.noise_seed} if method.method == "ddpm" else {}
        # what came later is in the file only if it is used, so that older runs resume
        vae: dict[str, Json] = {} if source.vae is None else {"vae": source.vae}
        tiling: dict[str, Json] = {"vae_tiling": True} if source.vae_tiling else {}
        return {
            "model": {
                "name": source.name,
                "revision": source.revision,
                "variant": source.variant,
                "config": source.config,
                **vae,
                **tiling,
                **_loras_to_json(source.loras),
                "fingerprint": self.fingerprint,
                "precision": self.precision,
                "num_steps": self.num_steps,
                "optimize_pooled": self.optimize_pooled,
                "method": method.method,
                "guidance_scale": method.guidance_scale,
                "num_inner_steps": method.num_inner_steps,
                "solver": method.solver,
                "null_init": method.null_init,
                "learning_rate": method.learning_rate,
                "early_stop_epsilon": method.early_stop_epsilon,
                "early_stop_growth": method.early_stop_growth,
                **noise_seed,
            },
            "data": {
                "caption": self.caption,
                "height": self.height,
                "width": self.width,
                **({} if self.fit == "crop" else {"fit": self.fit}),
                "units_per_shard": self.units_per_shard,
                "images": self.is_folder,
            },
            "output": {"storage": self.storage},
        }

    @classmethod
    def from_json(cls, values: JsonObject) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If a key is missing or unknown, or a value has the wrong type or is out of range.
        """
        model, data, output = (values.section(name) for name in ("model", "data", "output"))
        settings = cls(
            source=ModelSource(
                name=model.text("name"),
                revision=model.optional_text("revision"),
                variant=model.optional_text("variant"),
                config=model.optional_text("config"),
                vae=model.text("vae") if "vae" in model else None,
                loras=_loras_from_json(model),
                vae_tiling=model.boolean("vae_tiling") if "vae_tiling" in model else False,
            ),
            fingerprint=model.optional_text("fingerprint"),
            precision=cast(Precision, model.choice("precision", get_args(Precision))),
            num_steps=model.integer("num_steps", 1, MAX_STEPS),
            optimize_pooled=model.boolean("optimize_pooled"),
            inversion=_inversion_settings(model),
            caption=data.text("caption"),
            height=data.integer("height", 1, MAX_SIDE),
            width=data.integer("width", 1, MAX_SIDE),
            fit=cast(Fit, data.choice("fit", get_args(Fit))) if "fit" in data else "crop",
            units_per_shard=data.integer("units_per_shard", 1, MAX_UNITS),
            is_folder=data.boolean("images"),
            storage=cast(Storage, output.choice("storage", get_args(Storage))),
        )
        for section in (model, data, output, values):
            section.expect_all_read()
        return settings


def _loras_to_json(loras: Sequence[Lora]) -> dict[str, Json]:
    """LoRAs under the key of their flag; nothing without any."""
    return {"loras": [{"name": lora.name, "weight": lora.weight} for lora in loras]} if loras else {}


def _loras_from_json(model: JsonObject) -> tuple[Lora, ...]:
    """Read what `_loras_to_json` wrote.

    Raises:
        ValueError: If a key is missing, or a value has the wrong type.
    """
    values = model.array("loras") if "loras" in model else []
    loras = [JsonObject(value, f"{model.file}: model.loras") for value in values]
    return tuple(Lora(lora.text("name"), lora.number("weight")) for lora in loras)


def _inversion_settings(model: JsonObject) -> InversionSettings:
    """Read the settings of the method.

    Raises:
        ValueError: If a value has the wrong type or is out of range.
    """
    values: dict[str, Any] = {
        "method": model.choice("method", get_args(Method)),
        "guidance_scale": model.number("guidance_scale"),
        "num_inner_steps": model.integer("num_inner_steps", 1, 1 << 20),
        "solver": model.choice("solver", get_args(Solver)),
        "null_init": model.choice("null_init", get_args(NullInit)),
        "learning_rate": model.number("learning_rate"),
        "early_stop_epsilon": model.number("early_stop_epsilon"),
        "early_stop_growth": model.number("early_stop_growth"),
    }
    if values["method"] == "ddpm":
        values["noise_seed"] = model.integer("noise_seed", 0, MAX_SEED)
    try:
        return InversionSettings(**values)
    except ValueError as error:
        raise ValueError(f"{model.file}: model: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class EditRunSettings:
    """Settings of a run of `nti-batch edit`."""

    model_name: str | None
    """Place of the inversions' model, where it has moved; None for the place that they recorded."""

    model_config: str | None
    model_vae: str | None = None
    """Place of its other VAE, where that has moved."""

    model_loras: tuple[Lora, ...] = ()
    """Places of its LoRAs, where those have moved."""

    inversions: str
    """Absolute path of the inversion run."""

    edits: str | None
    """Absolute path of the list of edits; None edits every inversion."""

    edit_prompt: str | None
    units_per_shard: int
    edit: EditSettings
    """Settings of edits that name none of their own."""

    def to_json(self) -> dict[str, Json]:
        """The settings as `run.json` holds them."""
        vae: dict[str, Json] = {} if self.model_vae is None else {"vae": self.model_vae}
        return {
            "model": {"name": self.model_name, "config": self.model_config, **vae, **_loras_to_json(self.model_loras)},
            "data": {
                "inversions": self.inversions,
                "edits": self.edits,
                "edit_prompt": self.edit_prompt,
                "units_per_shard": self.units_per_shard,
            },
            "edit": self.edit.to_json(),
        }

    @classmethod
    def from_json(cls, values: JsonObject) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If a key is missing or unknown, or a value has the wrong type or is out of range.
        """
        model, data, edit = (values.section(name) for name in ("model", "data", "edit"))
        settings = cls(
            model_name=model.optional_text("name"),
            model_config=model.optional_text("config"),
            model_vae=model.text("vae") if "vae" in model else None,
            model_loras=_loras_from_json(model),
            inversions=data.text("inversions"),
            edits=data.optional_text("edits"),
            edit_prompt=data.optional_text("edit_prompt"),
            units_per_shard=data.integer("units_per_shard", 1, MAX_UNITS),
            edit=_edit_settings_from_json(edit),
        )
        for section in (model, data, edit, values):
            section.expect_all_read()
        return settings


def flatten(settings: Mapping[str, Json]) -> dict[str, Json]:
    """Settings in the form of `to_json` by the names of their flags, such as 'model.name'."""
    return {
        f"{section}.{key}": value
        for section, values in settings.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }


def _edit_settings_from_json(edit: JsonObject) -> EditSettings:
    """Read an edit's settings.

    Raises:
        ValueError: If a value has the wrong type or is out of range.
    """
    readers: dict[str, Callable[[str], object]] = {
        **dict.fromkeys(NUMBERS, edit.number),
        "proximal": lambda name: edit.choice(name, get_args(Proximal)),
        "dilate_mask": lambda name: edit.integer(name, 0, MAX_DILATION),
    }
    names = [item.name for item in fields(EditSettings) if item.name in FIRST_SETTINGS or item.name in edit]
    values: dict[str, Any] = {name: readers.get(name, edit.value)(name) for name in names}
    try:
        return EditSettings(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{edit.file}: edit: {error}") from error
