"""Recipes: the files in ``recipes/`` that decide what a training run does."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from brainmri.errors import ConfigError

RECIPES_DIRECTORY = Path(__file__).resolve().parent.parent / "recipes"

PAINTED_AWAY = 0.18
"""Share of outlined tumours painted away where a stage names none."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """One image collection a recipe trains on.

    Attributes
    ----------
    manifest : str
        File in ``data/splits`` (or a path).
    images : str
        Folder beside the data root.
    per_epoch : int or None
        Groups drawn each epoch (None: all); one image a group.
    repeat : int
        Draws of each drawn group each epoch.
    taught : bool
        With teachers: they answer for its views as well; else its labels alone count, where teachers know no better,
        but for mixtures of two views, which have no label.
    """

    name: str
    manifest: str
    images: str
    split_column: str = "split"
    per_epoch: int | None = None
    repeat: int = 1
    taught: bool = True


class Stage(_Strict):
    """Epochs at one input size and peak learning rate.

    Attributes
    ----------
    frozen_blocks : tuple of int or None
        Leading blocks that are not trained; None: the recipe's.
    painted_away : float
        With the recipe's ``counterfactuals``: the share of outlined tumours that is painted away and called no tumour.
    mild : float
        With ``full`` augmentation: the share of views whose grey values change only as they do between two scans of one
        protocol (`augment.mild_intensity`); where every epoch sees fresh views it grows to that linearly from none.
    sharpness : float
        Radius of sharpness-aware minimisation [2]_: each step descends from the worst point this far away, found with
        half of its batch [3]_; 0: plain descent. On TensorFlow alone.
    mixed : float
        With teachers: the share of views that are a mixture of two [4]_, falling linearly to none at the stage's end.
        What such a picture shows the teacher alone says; it has neither label nor outline.
    averaged : bool
        The hidden layer sees the mean over positions (`model.build_network`).
    contribution_weight : float
        With ``averaged`` and the recipe's mask head: weight of the loss that holds Grad-CAM to the outlines.
    average_epochs : int
        The stage ends with the mean of its last n epochs' weights, batch statistics measured anew [1]_; 0: without.

    References
    ----------
    .. [1] Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018.
    .. [2] Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021.
    .. [3] Du et al., "Efficient Sharpness-aware Minimization for Improved Training of Neural Networks", ICLR 2022.
    .. [4] Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; taught: Beyer et al., CVPR 2022.
    """

    input_size: Literal[32, 64, 96, 128, 160, 192, 224]
    epochs: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    frozen_blocks: tuple[int, ...] | None = None
    painted_away: float = Field(PAINTED_AWAY, ge=0, le=1)
    mild: float = Field(0.0, ge=0, le=1)
    sharpness: float = Field(0.0, ge=0)
    mixed: float = Field(0.0, ge=0, le=1)
    averaged: bool = False
    contribution_weight: float = Field(0.0, ge=0)
    average_epochs: int = Field(0, ge=0)


class Recipe(_Strict):
    """Everything that decides what a training run does; a YAML file in ``recipes/``.

    Attributes
    ----------
    continues : str or None
        The recipe whose finished model this one starts from, batch norm put back (`model.unfold_batch_norm`).
    architecture : str
        ``vgg16``, or ``efficientnet-lite2`` for a network that is only another's teacher.
    teacher : str or None
        Recipe of the networks whose probabilities for each view this one learns from as well [3]_; they are trained
        first. Views are drawn at the size that they see and made smaller for the one that learns.
    teachers : int
        How many: alike, but trained from other random numbers. For each batch one is drawn to answer.
    teacher_weight : float
        Their share of the class loss.
    edited_taught : bool
        Teachers answer for views in which a tumour was painted away or pasted in as well; else what was done to such a
        view alone says what it shows.
    start_teaches : bool
        The network that this one starts from is one more teacher.
    start_share : float
        What ships is the mean of the trained weights and those that it started from, which weigh this much [2]_: along
        the line between them lie networks that are right where either is.
    imagenet_blocks : tuple of int
        Blocks that start from ImageNet; the others start from He's initialisation. Where some of them are normalised,
        batch norm is put in so that it changes nothing (`model.unfold_batch_norm`).
    frozen_blocks : tuple of int
        Leading blocks that are not trained.
    normalised_blocks : tuple of int
        Blocks with batch norm while training.
    one_per_group : bool
        An epoch draws one image of each slice group, else every image.
    class_balance : bool
        Classes weigh the same in the loss.
    plane_balance : bool
        With ``class_balance``: they do within each plane, or else a plane alone says which tumour to expect.
    draws : int
        0: every epoch sees fresh views. n > 0: there are n epochs' worth of views, which epochs cycle over in another
        order, each view mirrored or not at random.
    view_seed : int or None
        Decides which views there are; None: ``seed`` does. Recipes that agree in it, and in all else that decides, can
        share them (`views.Views`).
    cached_draws : int
        n > 0: n views of each image are pushed through the frozen blocks once, and epochs cycle over those features.
    augmentation : str
        ``brightness_contrast`` (the classic), ``full``, or ``none``.
    mask_weight : float
        Weight of the auxiliary mask loss; 0 trains without the mask head.
    bias_correction : bool
        After training, add to the logits the per-class bias that minimises the log loss of the first source's val
        split, together with a temperature [1]_: views painted away and class balance shift the share of no tumour.
    counterfactuals : bool
        Train on tumours painted away (as no tumour), paint elsewhere (unchanged label), and pasted tumours.
    exchanged : float
        With ``counterfactuals``: share of the first source's outlined tumours that are painted away and another
        patient's put in, of any type, seen in the same plane. Nothing but the tumour tells its type then.
    warp : float
        With ``full`` augmentation: how much views are bent (`augment.random_affine`).

    References
    ----------
    .. [1] Alexandari, Kundaje & Shrikumar, "Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label
       Shift Adaptation", ICML 2020.
    .. [2] Wortsman et al., "Robust Fine-Tuning of Zero-Shot Models", CVPR 2022, arXiv:2109.01903.
    .. [3] Beyer et al., "Knowledge Distillation: A Good Teacher Is Patient and Consistent", CVPR 2022.
    """

    name: str
    description: str = ""
    sources: tuple[Source, ...] = Field(min_length=1)
    stages: tuple[Stage, ...] = Field(min_length=1)
    continues: str | None = None
    architecture: Literal["vgg16", "efficientnet-lite2"] = "vgg16"
    teacher: str | None = None
    teachers: int = Field(1, gt=0)
    teacher_weight: float = Field(0.0, ge=0, le=1)
    edited_taught: bool = True
    start_teaches: bool = False
    start_share: float = Field(0.0, ge=0, le=1)
    imagenet_blocks: tuple[int, ...] = ()
    frozen_blocks: tuple[int, ...] = ()
    normalised_blocks: tuple[int, ...] = ()
    one_per_group: bool = True
    draws: int = Field(0, ge=0)
    view_seed: int | None = None
    cached_draws: int = Field(0, ge=0)
    optimizer: Literal["adam", "adamw"] = "adamw"
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 0.0
    batch_size: int = Field(32, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_balance: bool = False
    plane_balance: bool = False
    augmentation: Literal["none", "brightness_contrast", "full"] = "full"
    mask_weight: float = 0.0
    counterfactuals: bool = False
    exchanged: float = Field(0.0, ge=0, le=1)
    warp: float = Field(0.0, ge=0, le=0.1)
    bias_correction: bool = False
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    seed: int = 0

    @model_validator(mode="after")
    def _what_one_field_needs_of_another(self):
        if self.cached_draws and (self.teacher or self.draws):
            raise ValueError("cached_draws: features of few views, with neither teacher nor draws; leave those out")
        if self.cached_draws and not self.frozen_blocks:
            raise ValueError("cached_draws: features of frozen blocks, of which there are none; name frozen_blocks")
        mixed = any(stage.mixed for stage in self.stages)
        if (self.start_teaches or mixed) and not (self.teacher and self.teacher_weight):
            raise ValueError("start_teaches, mixed: only where a teacher answers; name one and its teacher_weight")
        if (self.start_teaches or self.start_share) and not self.continues:
            raise ValueError("start_teaches, start_share: only where a recipe continues another; name it in continues")
        if self.architecture == "vgg16":
            # The dense kernel has weights for each of (size / 32)² positions, an averaged head's for one.
            for before, after in pairwise(self.stages):
                sides = sorted(1 if stage.averaged else stage.input_size // 32 for stage in (before, after))
                if sides[1] % sides[0]:
                    raise ValueError(
                        f"stages: from {before.input_size} to {after.input_size} px the dense kernel cannot be carried "
                        "over; take sizes of which one is a multiple of the other, or averaged: true for either stage"
                    )
        return self


def load_recipe(name: str) -> Recipe:
    """Read ``recipes/<name>.yaml`` or a path.

    Raises
    ------
    ConfigError
        No such recipe (lists those there are), or a key or value that is wrong (named).
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES_DIRECTORY / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES_DIRECTORY.glob("*.yaml")))
        raise ConfigError(f"no recipe '{name}'; recipes: {known}")
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        raise ConfigError(f"{path.name}: {' '.join(str(error).split())}") from error


def override(
    recipe: Recipe,
    *,
    epochs: int | None = None,
    precision: str | None = None,
    seed: int | None = None,
    masks: bool = True,
) -> Recipe:
    """A recipe with some of its values replaced, checked like the file.

    Without ``masks`` it is the twin that heatmaps are compared with: named so, and trained on the same views without a
    look at an outline.
    """
    changes: dict[str, Any] = {}
    if epochs is not None:
        changes["stages"] = [stage.model_dump() | {"epochs": epochs} for stage in recipe.stages]
    if precision is not None:
        changes["precision"] = precision
    if seed is not None:
        changes["seed"] = seed
    if not masks:
        changes |= {"name": f"{recipe.name}-without-masks", "mask_weight": 0.0}
    try:
        return Recipe(**(recipe.model_dump() | changes))
    except ValidationError as error:
        raise ConfigError(f"{recipe.name}: {' '.join(str(error).split())}") from error
