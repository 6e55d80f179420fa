"""Label noise: which labels are replaced, by what, and that nothing else moves."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

from mixwell import DataError, ParameterError
from mixwell.core.batch import Pixels
from mixwell.data import InMemory, Loader, from_datasets, load, with_label_noise
from mixwell.data.folder import ImageFolder
from mixwell.data.noise import Relabelled, noisy_labels
from mixwell.data.split import unaugmented

LABELS = torch.arange(9000) % 10


def test_exactly_the_share_is_replaced_and_never_by_the_same_class():
    for share in (0.0, 0.1, 0.4, 1.0):
        noisy = noisy_labels(LABELS, 10, share)
        assert int((noisy != LABELS).sum()) == round(share * len(LABELS))
        assert noisy.min() >= 0
        assert noisy.max() <= 9


def test_every_other_class_is_as_likely_whatever_the_true_one():
    noisy = noisy_labels(LABELS, 10, 1.0)
    counts = torch.zeros(10, 10).index_put_((LABELS, noisy), torch.ones(len(LABELS)), accumulate=True)
    assert (counts.diagonal() == 0).all()
    others = counts[~torch.eye(10, dtype=torch.bool)]
    # 900 draws among 9 classes: mean 100, standard deviation 9.4; five of them.
    assert ((others - 100).abs() < 47).all()
    # Chi-square of 90 cells with 80 degrees of freedom: mean 80, standard deviation 12.6.
    assert float(((others - 100) ** 2 / 100).sum()) < 80 + 5 * 12.6


def test_the_seed_says_which_and_a_smaller_share_replaces_some_of_the_same():
    some, again, other = (noisy_labels(LABELS, 10, 0.4, seed) for seed in (3, 3, 4))
    assert torch.equal(some, again)
    assert not torch.equal(some != LABELS, other != LABELS)
    fewer = noisy_labels(LABELS, 10, 0.1, 3)
    assert torch.equal(some[fewer != LABELS], fewer[fewer != LABELS])


def test_training_labels_change_and_images_order_index_and_test_set_stay():
    clean = load("digits", size=16, channels=1, augment="crop-flip")
    noisy = with_label_noise(clean, 0.4, 1)
    assert isinstance(noisy.train, InMemory)
    assert noisy.test is clean.test
    batches = [next(Loader(data.train, 200, pixels=data.pixels, seed=1).epoch(0)) for data in (clean, noisy)]
    assert torch.equal(batches[0].images, batches[1].images)
    assert torch.equal(batches[0].index, batches[1].index)
    assert torch.equal(batches[1].labels, noisy.train.labels[batches[1].index])
    assert 0.25 < float((batches[0].labels != batches[1].labels).float().mean()) < 0.55
    assert with_label_noise(clean, 0.0) is clean


def test_image_folders_stay_image_folders(tmp_path):
    for row in range(40):
        path = tmp_path / f"class{row % 4}" / f"{row:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (row, row, row)).save(path)
    clean = load(f"imagefolder:{tmp_path}", size=8, augment="crop-flip")
    noisy = with_label_noise(clean, 0.5)
    assert isinstance(noisy.train, ImageFolder)
    assert (noisy.train.paths, noisy.train.augment, noisy.train.size) == (clean.train.paths, "crop-flip", 8)
    assert sum(a != b for a, b in zip(clean.train.targets, noisy.train.targets, strict=True)) == 16
    assert noisy.test is clean.test


class Own(Dataset):
    def __init__(self):
        self.targets = [row % 5 for row in range(50)]

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return torch.full((1, 8, 8), index, dtype=torch.uint8), self.targets[index], {"row": torch.tensor(index)}


def test_sets_of_ones_own_are_wrapped():
    clean = from_datasets(Own(), Own(), pixels=Pixels((0.0,), (1.0,)))
    noisy = with_label_noise(clean, 0.4)
    assert isinstance(noisy.train, Relabelled)
    wrong = 0
    for row in range(50):
        image, label, extras = noisy.train[row]
        assert int(image[0, 0, 0]) == int(extras["row"]) == row
        wrong += label != row % 5
    assert wrong == 20


def test_originals_of_a_relabelled_part_have_the_labels_of_the_relabelled_images():
    augmented = InMemory(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.arange(20) % 5, augment="crop-flip")
    part = Relabelled(Subset(augmented, np.arange(10).tolist()), torch.full((10,), 3))
    plain = unaugmented(part)
    assert plain.dataset.dataset.augment is None
    assert [plain[row][1] for row in range(10)] == [3] * 10


def test_what_cannot_be_relabelled_is_refused():
    with pytest.raises(ParameterError, match="share"):
        noisy_labels(LABELS, 10, 1.2)
    with pytest.raises(DataError, match="1 class"):
        noisy_labels(torch.zeros(4, dtype=torch.long), 1, 0.5)
    rows = torch.utils.data.TensorDataset(torch.zeros(4, 1, 8, 8), torch.eye(4))
    with pytest.raises(DataError, match="class weights"):
        with_label_noise(from_datasets(rows, rows, pixels=Pixels((0.0,), (1.0,))), 0.5)
