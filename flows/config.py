"""One run's configuration: a YAML file that becomes the parameters of the flows."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from methods.curation.split_config import SplitConfig
from methods.detectors.autoencoder import AutoencoderConfig
from methods.detectors.interface import DetectorError
from methods.detectors.networks.backbones import check_backbones
from methods.detectors.patchcore import PatchCoreConfig
from methods.detectors.registry import DetectorConfig
from storage import filesystems
from storage.datasets.registry import AnySource
from tasks.calibrate import CalibrationConfig
from tasks.curation import CurationConfig, TilingConfig
from tasks.evaluate import EvaluationConfig
from tasks.execution import ExecutionConfig, parse_execution
from tasks.paint import PAINTED_NOTICE, PaintConfig
from tasks.score import ScoringConfig
from tasks.settings import load_settings
from tasks.train import TrainingConfig
from tasks.yaml_files import ConfigError, read_yaml

__all__ = ["ConfigError", "RunConfig", "load_config", "read_yaml"]


class RunConfig(BaseModel):
    """Everything a run depends on. Each part is declared beside what it configures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[\w .-]+$", description="of the run, in the UI and in the report")
    store: str = Field(description="folder or s3://bucket/prefix where everything is kept")
    source: Annotated[tuple[AnySource, ...], Field(min_length=1, description="one source, or a list of several")]
    paint: PaintConfig | None = None
    tiling: TilingConfig = TilingConfig()
    curation: CurationConfig = CurationConfig()
    previous_manifest: str | None = Field(default=None, description="of a grown archive: what is in it keeps its split, the rest is dealt")
    split: SplitConfig = SplitConfig()
    detectors: tuple[DetectorConfig, ...] = Field(default=(PatchCoreConfig(), AutoencoderConfig()), min_length=1)
    training: TrainingConfig = TrainingConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    scoring: ScoringConfig = ScoringConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    execution: ExecutionConfig = Field(default_factory=lambda: parse_execution(load_settings().execution))
    failed_share_max: float = Field(default=0.05, ge=0, le=1, description="share of pictures or samples that may fail before the run stops")
    notice: str | None = Field(default=None, description="what a reader of the report must know about the data")

    @property
    def shown_notice(self) -> str | None:
        """The notice, and that anomalies are painted where they are."""
        painted = PAINTED_NOTICE if self.paint is not None else None
        return " ".join(text for text in (self.notice, painted) if text) or None

    @field_validator("source", mode="before")
    @classmethod
    def _as_several(cls, source: Any) -> Any:
        return source if isinstance(source, list | tuple) else (source,)

    @field_validator("store")
    @classmethod
    def _make_absolute(cls, store: str) -> str:
        return filesystems.absolute(store)


def load_config(path: Path, *, change: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values) -> RunConfig:
    """Read a YAML file; paths in it are relative to it, and a section `retrain` is `flows.retrain.load_retrain`'s.

    Args:
        path: of the file.
        change: of its values, before paths are resolved and all is validated.

    Raises:
        ConfigError: no file, no YAML, an unknown key (with the nearest known one), a wrong value, a layer that a backbone does not have
            (with those that it has).
    """

    def prepare(values: dict[str, Any]) -> dict[str, Any]:
        return _beside(path.parent, change({key: value for key, value in values.items() if key != "retrain"}))

    config = read_yaml(path, RunConfig, prepare=prepare)
    for number, detector in enumerate(config.detectors):
        try:
            check_backbones(detector)
        except DetectorError as error:
            raise ConfigError(f"{path}: detectors.{number}.{error}") from None
    return config


def _beside(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Resolve the relative paths against the folder of the file, not against where the command happens to run."""
    resolved = dict(values)
    if isinstance(store := values.get("store"), str):
        resolved["store"] = _resolve(folder, store)
    if isinstance(previous := values.get("previous_manifest"), str):
        resolved["previous_manifest"] = _resolve(folder, previous)
    if isinstance(source := values.get("source"), list):
        resolved["source"] = [_beside_source(folder, one) for one in source]
    elif source is not None:
        resolved["source"] = _beside_source(folder, source)
    if isinstance(detectors := values.get("detectors"), list):
        resolved["detectors"] = [_beside_weights(folder, detector) for detector in detectors]
    if isinstance(curation := values.get("curation"), dict) and isinstance(stain := curation.get("stain"), dict) and "target" in stain:
        resolved["curation"] = {**curation, "stain": {**stain, "target": _resolve(folder, str(stain["target"]))}}
    return resolved


def _beside_source(folder: Path, source: Any) -> Any:
    if not isinstance(source, dict) or not isinstance(source.get("path", "."), str):
        return source
    with_kind = {"kind": "folder", **source}
    return with_kind if "path" not in source else {**with_kind, "path": _resolve(folder, source["path"])}


def _beside_weights(folder: Path, detector: Any) -> Any:
    """A detector's weight files, which stand one level below its keys: `backbone: {weights: FILE}`."""
    return {key: find_weights(folder, part) for key, part in detector.items()} if isinstance(detector, dict) else detector


def find_weights(folder: Path, part: Any) -> Any:
    """A part of a configuration as it stands in a file in this folder; where it has `weights`, with the path of that file."""
    if not isinstance(part, dict) or not isinstance(part.get("weights"), str):
        return part
    return {**part, "weights": _resolve(folder, part["weights"])}


def _resolve(folder: Path, uri: str) -> str:
    return uri if "://" in uri else str((folder / Path(uri).expanduser()).resolve())
