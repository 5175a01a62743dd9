"""How samples are split: shares or exact counts, who may train, what is done about conflicts."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

SplitName = Literal["train", "validation", "test"]


class SplitError(ValueError):
    """Groups that cannot be divided as asked; the message names the row, the group or the nearest that is possible."""


class CountConfig(BaseModel):
    """Samples of one split. What is not named (a label, a finding) stays unused, also in the groups that are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normal: NonNegativeInt = Field(default=0, description="normal samples")
    abnormal: NonNegativeInt | dict[str, NonNegativeInt] = Field(default=0, description="abnormal samples, in all or by finding")
    abnormal_each: NonNegativeInt = Field(default=0, description="abnormal samples of each finding that the data hold")
    total: NonNegativeInt | None = Field(default=None, description="samples of both labels, in the ratio that the data have")

    @model_validator(mode="after")
    def _one_way(self) -> "CountConfig":
        if self.abnormal and self.abnormal_each:
            raise ValueError("give abnormal or abnormal_each, not both")
        if self.total is not None and (self.normal or self.abnormal or self.abnormal_each):
            raise ValueError("give total alone; with it the data decide how many are normal")
        return self


class SplitConfig(BaseModel):
    """Shares of the samples of each label and source; with train_on = normal the abnormal ones are shared by validation and test alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: float = Field(default=0.6, ge=0, le=1, description="share of the samples")
    validation: float = Field(default=0.2, ge=0, le=1, description="share of the samples")
    test: float = Field(default=0.2, ge=0, le=1, description="share of the samples")
    seed: int = Field(default=0, ge=0, description="of the draw")
    train_on: Literal["normal", "both"] = Field(
        default="normal", description="normal: no group with an abnormal sample trains; both: a classifier's splits, by label alike"
    )
    counts: dict[SplitName, CountConfig] | None = Field(
        default=None, description="exact numbers of samples instead of shares; what is left over is in no split"
    )
    on_conflict: Literal["error", "exclude"] = Field(
        default="error",
        description="of a group prescribed to several splits: error names it, exclude keeps only what is in test (else validation)",
    )
    validation_from_train: bool = Field(
        default=False, description="samples prescribed to train may be dealt to validation (official lists that have no validation)"
    )

    @model_validator(mode="after")
    def _sum_to_one(self) -> "SplitConfig":
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError(f"train + validation + test must be 1, not {self.train + self.validation + self.test:g}")
        return self

    @model_validator(mode="after")
    def _train_on_what_it_may(self) -> "SplitConfig":
        for name, count in (self.counts or {}).items():
            if count.total is not None and self.train_on == "normal":
                raise ValueError(f"counts.{name}.total counts both labels; it needs train_on: both")
            if name == "train" and self.train_on == "normal" and (count.abnormal or count.abnormal_each):
                raise ValueError("counts.train asks for abnormal samples; it needs train_on: both")
        return self
