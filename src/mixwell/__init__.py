"""mixwell: every mixup method of the survey, correct, fast and composable, on any PyTorch model.

recipe = mixwell.create("cutmix", num_classes=10)
for images, labels in loader:
    loss = recipe(model, images, labels)
"""

from mixwell.core.axes import Draws, Scene, Step
from mixwell.core.batch import Batch, Pixels
from mixwell.core.clock import Clock
from mixwell.core.errors import (
    BatchError,
    DataError,
    IncompatibleRecipe,
    MixwellError,
    ModelError,
    OwnershipError,
    ParameterError,
    RecipeSyntaxError,
    RunError,
    SiteError,
    UnknownMethod,
)
from mixwell.core.mix import Mix, Partners
from mixwell.core.mixed import Mixed
from mixwell.core.recipe import Recipe, create
from mixwell.core.registry import Method, Pieces, method, method_of, methods
from mixwell.core.targets import Targets
from mixwell.core.turns import Trainee, Turn
from mixwell.probe import Outputs, Probe, Views, Want

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BatchError",
    "Clock",
    "DataError",
    "Draws",
    "IncompatibleRecipe",
    "Method",
    "Mix",
    "Mixed",
    "MixwellError",
    "ModelError",
    "Outputs",
    "OwnershipError",
    "ParameterError",
    "Partners",
    "Pieces",
    "Pixels",
    "Probe",
    "Recipe",
    "RecipeSyntaxError",
    "RunError",
    "Scene",
    "SiteError",
    "Step",
    "Targets",
    "Trainee",
    "Turn",
    "UnknownMethod",
    "Views",
    "Want",
    "create",
    "method",
    "method_of",
    "methods",
]
