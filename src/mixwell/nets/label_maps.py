"""Label maps: what a frozen classifier says of every place of every training image, kept beside the data.

They are made once, of the images without augmentation, and kept as the highest scores at each place: fp16 scores, and
class ids in the smallest integers that hold them. A batch shows crops of its images; the maps that it is given are
those of the whole images, with the crops that say what of them is shown. A data set of one's own that augments by
itself must say where its images lie (the extra "crop", see `mixwell.data.crops`) or bring maps of what it shows (the
extra "label_map"): nobody else knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from mixwell.core.artefacts import Workshop
from mixwell.core.batch import Batch
from mixwell.core.errors import BatchError, MixwellError, ModelError
from mixwell.nets.pretrained import Pretrained
from mixwell.ops.label_maps import top_scores

__all__ = ["Annotation", "Annotator"]


@dataclass(eq=False)
class Annotation:
    """The label maps of a batch.

    Attributes:
        scores, classes: (B, k, h, w) the highest scores at each place and their classes, of whole images.
        crops: (B, 5) what of them the batch shows, see `mixwell.data.crops`; None for all.
    """

    scores: Float[Tensor, "b k h w"]
    classes: Integer[Tensor, "b k h w"]
    crops: Float[Tensor, "b 5"] | None


class Annotator(nn.Module):
    """Gives batches their label maps: their own, those made beforehand, or the teacher's of the images as they are.

    Maps of a data set lie on the device of its holder, and are no part of its state.

    Args:
        teacher: the classifier.
        owner: the method that reads the maps, for messages.
        count: scores that are kept for each place.
    """

    def __init__(self, teacher: Pretrained, owner: str, count: int = 5) -> None:
        super().__init__()
        self.teacher, self.owner, self.count = teacher, owner, count
        self.num_classes: int | None = None
        self._maps: tuple[Tensor, Tensor] | None = None

    def prepare(self, workshop: Workshop) -> None:
        """Make or load the teacher, and the maps of all images if they come with their index.

        Raises:
            ModelError: the teacher does not classify the recipe's classes.
            MixwellError: an image of the data set did not come.
        """
        self.teacher.prepare(workshop)
        self.num_classes, self._maps = workshop.num_classes, None
        first = next(iter(workshop.originals()), None)
        if first is None or first.index is None:
            return
        settings = {"teacher": self.teacher.fingerprint, "count": self.count, "classes": self.num_classes}
        made = workshop.made("label-maps", settings, lambda: self._made(workshop))
        self._maps = made["scores"].to(workshop.device), made["classes"].to(workshop.device)

    def of(self, batch: Batch) -> Annotation:
        """The maps of a batch.

        They are the batch's `extras["label_map"]` if it has them: (B, 2, k, h, w), the highest scores and their class
        ids, as the maps published with Token Labeling have them. Else those of the rows' `index`. Both are of whole
        images, of which the batch shows `extras["crop"]`, or all if it has none. Rows that have neither are shown to
        the teacher.

        Raises:
            MixwellError: there is neither a map nor a teacher.
            BatchError: maps or crops of another shape, or an index beyond the images of which maps were made.
        """
        crops = batch.extras.get("crop")
        if crops is not None and crops.shape != (len(batch), 5):
            raise BatchError(
                f"{self.owner}: extras['crop'] must be ({len(batch)}, 5): top, left, height and width as shares of the "
                f"image, and whether it is mirrored; got {tuple(crops.shape)}."
            )
        if (own := batch.extras.get("label_map")) is not None:
            if own.ndim != 5 or own.shape[:2] != (len(batch), 2):
                raise BatchError(
                    f"{self.owner}: extras['label_map'] must be ({len(batch)}, 2, k, h, w), scores and class ids of "
                    f"each place, got {tuple(own.shape)}."
                )
            return Annotation(own[:, 0].float(), own[:, 1].long(), crops)
        if self._maps is not None and batch.index is not None:
            scores, classes = self._maps
            if batch.index.is_cpu and int(batch.index.max()) >= len(scores):
                raise BatchError(
                    f"{self.owner}: label maps were made of {len(scores)} images, got index {int(batch.index.max())}. "
                    "Prepare the recipe on the data that it is trained on."
                )
            index, device = batch.index.to(scores.device), batch.images.device
            return Annotation(scores[index].to(device).float(), classes[index].to(device).long(), crops)
        if not self.teacher.there:
            raise MixwellError(
                f"{self.owner} needs label maps, and has none. Call recipe.prepare(batches, data) before training, "
                "which makes or loads them (`mixwell train` does so by itself), or give the batches their own: "
                "extras={'label_map': (B, 2, k, h, w)}."
            )
        return Annotation(*top_scores(self._logits(batch), self.count), None)

    @torch.no_grad()
    def _logits(self, batch: Batch) -> Float[Tensor, "b c h w"]:
        """What the teacher says of each place of the images as they are."""
        found = self.teacher.class_maps(batch.images, batch.pixels)
        if self.num_classes is not None and found.shape[1] != self.num_classes:
            raise ModelError(
                f"{self.owner}: label maps need a teacher of the recipe's {self.num_classes} classes, got one of "
                f"{found.shape[1]}. Take a network trained on such images: the folder of a finished run, or none for a "
                "small one that is trained beforehand."
            )
        return found

    def _made(self, workshop: Workshop) -> dict[str, Tensor]:
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        done = 0
        workshop.progress("label maps", 0, workshop.rows or 0)
        for batch in workshop.originals():
            assert batch.index is not None, "the first batch has one"
            logits = self._logits(batch.to(workshop.device))
            scores, classes = top_scores(logits, self.count)
            seen.append((batch.index, scores.half().cpu(), classes.to(_ids_of(logits.shape[1])).cpu()))
            done += len(batch)
            workshop.progress("label maps", done, workshop.rows or done)
        index, scores, classes = (torch.cat(parts) for parts in zip(*seen, strict=True))
        order = index.argsort()
        if not torch.equal(index[order], torch.arange(len(index))):
            raise MixwellError(
                f"Label maps are made of a pass that shows each image of the data set once, got {len(index)} images "
                f"with {len(set(index.tolist()))} indices from {int(index.min())} to {int(index.max())}."
            )
        return {"scores": scores[order], "classes": classes[order]}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Annotator:
        """Move the maps too."""
        if self._maps is not None:
            self._maps = fn(self._maps[0]).half(), fn(self._maps[1])
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def _ids_of(classes: int) -> torch.dtype:
    """The smallest integers that number so many classes."""
    return torch.uint8 if classes <= 2**8 else torch.int16 if classes <= 2**15 else torch.int32
