"""Golden-like cases of other sizes, computed by plain NumPy loops from the methods' definitions."""

import numpy as np
import pytest


@pytest.fixture(params=[(5, 24, 40, 7), (1, 16, 8, 3), (4, 40, 24, 12)], ids=lambda p: "x".join(map(str, p)))
def sizes(request) -> tuple[int, int, int, int]:
    """Batch size, height, width, classes; the sides are multiples of 8."""
    return request.param


@pytest.fixture
def fresh_cases(sizes):
    """A case of each method: {slug: {name: array}}."""
    return {
        "mixup": mixup_case(*sizes),
        "cutmix": cutmix_case(*sizes),
        "manifold_mixup": manifold_mixup_case(*sizes),
        "transmix": transmix_case(*sizes),
    }


def rows_of(images, labels, perm, lam, classes):
    """Mixed images and label rows, one sample after the other."""
    mixed, target = np.empty_like(images), np.zeros((len(images), classes))
    for i, j in enumerate(perm):
        mixed[i] = lam[i] * images[i] + (1 - lam[i]) * images[j]
        target[i, labels[i]] += lam[i]
        target[i, labels[j]] += 1 - lam[i]
    return mixed, target


def log_softmax(logits):
    shifted = logits.astype(float) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def cross_entropy(logits, target):
    return -(target * log_softmax(logits)).sum(1).mean()


def softmax_bce(logits, target):
    log_p = log_softmax(logits)
    log_rest = np.log1p(-np.exp(log_p))
    return -(target * log_p + (1 - target) * log_rest).mean()


def batch_of(rng, count, height, width, classes):
    images = rng.standard_normal((count, 3, height, width)).astype(np.float32)
    labels = rng.permutation(max(count, classes))[:count] % classes
    return images, labels, 3 * rng.standard_normal((count, classes)).astype(np.float32)


def mixup_case(count, height, width, classes):
    rng = np.random.default_rng(11)
    x, y, logits = batch_of(rng, count, height, width, classes)
    lam, index, lam_elem = rng.beta(1, 1), rng.permutation(count), rng.beta(1, 1, count).astype(np.float32)
    mixed, target = rows_of(x, y, index, np.full(count, lam), classes)
    return {
        "x": x,
        "y": y,
        "num_classes": np.int64(classes),
        "lam": lam,
        "index": index,
        "logits": logits,
        "mixed": mixed,
        "target": target,
        "loss": np.float32(cross_entropy(logits, target)),
        "lam_elem": lam_elem,
        "mixed_elem": rows_of(x, y, index, lam_elem, classes)[0],
    }


def box_around(row, column, lam, height, width):
    half_h, half_w = int(height * np.sqrt(1 - lam)) // 2, int(width * np.sqrt(1 - lam)) // 2
    top, bottom = max(row - half_h, 0), min(row + half_h, height)
    left, right = max(column - half_w, 0), min(column + half_w, width)
    return top, bottom, left, right


def pasted(images, perm, box):
    """Images with their partners' pixels in the box, and the share of what was kept."""
    top, bottom, left, right = box
    mixed, inside = images.copy(), 0
    for i in range(top, bottom):
        for j in range(left, right):
            mixed[:, :, i, j] = images[perm, :, i, j]
            inside += 1
    return mixed, 1 - inside / (images.shape[2] * images.shape[3])


def cutmix_case(count, height, width, classes):
    rng = np.random.default_rng(12)
    images, labels, logits = batch_of(rng, count, height, width, classes)
    lam_raw = np.array([0.0, 0.07, 0.4, 0.71, 0.99, 1.0])
    rows, columns = rng.integers(height, size=6), rng.integers(width, size=6)
    perm = np.stack([rng.permutation(count) for _ in lam_raw])
    boxes, lams, mixed, targets = [], [], [], []
    for t, lam in enumerate(lam_raw):
        box = box_around(rows[t], columns[t], lam, height, width)
        images_t, kept = pasted(images, perm[t], box)
        boxes.append((box[0], box[2], box[1], box[3]))
        lams.append(kept)
        mixed.append(images_t)
        targets.append(rows_of(images, labels, perm[t], np.full(count, kept), classes)[1])
    return {
        "images": images,
        "labels": labels,
        "logits": logits,
        "lam_raw": lam_raw,
        "perm": perm,
        "center_row": rows,
        "center_col": columns,
        "box_r0_c0_r1_c1": np.array(boxes),
        "lam": np.array(lams),
        "mixed": np.stack(mixed),
        "target": np.stack(targets),
        "loss": np.array([cross_entropy(logits, target) for target in targets]),
    }


def conv_relu(x, weight, bias, stride):
    """A 3×3 convolution with padding 1, and a ReLU."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = (side // stride for side in x.shape[2:])
    out = np.zeros((len(x), len(weight), height, width))
    for i in range(height):
        for j in range(width):
            patch = padded[:, :, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, :, i, j] = np.tensordot(patch, weight, ((1, 2, 3), (1, 2, 3))) + bias
    return np.maximum(out, 0)


def manifold_mixup_case(count, height, width, classes):
    rng = np.random.default_rng(13)
    x, y, _ = batch_of(rng, count, height, width, classes)
    lam, perm = np.float32(rng.beta(2, 2)), rng.permutation(count)
    shapes = {"conv1_w": (5, 3, 3, 3), "conv1_b": (5,), "conv2_w": (4, 5, 3, 3), "conv2_b": (4,)}
    shapes |= {"fc_w": (classes, 4), "fc_b": (classes,)}
    net = {name: (0.2 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    case = {"x": x, "y": y, "num_classes": np.int64(classes), "lam": lam, "perm": perm, **net}
    for site in (0, 1, 2):
        h = x.astype(float)
        for depth in (0, 1, 2):
            if depth:
                h = conv_relu(h, net[f"conv{depth}_w"], net[f"conv{depth}_b"], depth)
            if depth == site:
                case |= {f"h{site}": h.astype(np.float32)} if site else {}
                h, target = rows_of(h, y, perm, np.full(count, lam), classes)
                case[f"mixed{site}"] = h.astype(np.float32)
        logits = h.mean((2, 3)) @ net["fc_w"].T + net["fc_b"]
        case |= {f"logits{site}": logits.astype(np.float32), "target": target.astype(np.float32)}
        case[f"loss_bce{site}"] = np.float32(softmax_bce(logits, target))
        case[f"loss_ce{site}"] = np.float32(cross_entropy(logits, target))
    return case


def transmix_case(count, height, width, classes):
    rng = np.random.default_rng(14)
    x, y, logits = batch_of(rng, count, height, width, classes)
    grid, heads, smoothing, lam_raw = (height // 8, width // 8), 2, 0.2, 0.35
    tokens = grid[0] * grid[1] + 1
    attention = np.exp(rng.standard_normal((count, heads, tokens, tokens)))
    attention = (attention / attention.sum(-1, keepdims=True)).astype(np.float32)
    looked_at = attention.astype(float).mean(1)[:, 0, 1:]
    row, column = rng.integers(height), rng.integers(width)
    flipped = np.arange(count)[::-1]

    def labelled(weights):
        off = smoothing / classes
        target = np.full((count, classes), off)
        for i in range(count):
            target[i, y[i]] += (1 - smoothing) * weights[i]
            target[i, y[flipped[i]]] += (1 - smoothing) * (1 - weights[i])
        return target

    def token_mask(box):
        mask = np.zeros(grid, np.uint8)
        for i in range(grid[0]):
            for j in range(grid[1]):
                mask[i, j] = box[0] <= 8 * i < box[1] and box[2] <= 8 * j < box[3]
        return mask

    def attention_share(box):
        outside = token_mask(box).reshape(-1) == 0
        return np.array([a[outside].sum() / a.sum() for a in looked_at])

    box, small = box_around(row, column, lam_raw, height, width), (1, 4, 2, 7)
    mixed, area = pasted(x, flipped, box)
    share = attention_share(box)
    final = (area + share) / 2
    small_final = (pasted(x, flipped, small)[1] + attention_share(small)) / 2
    f32 = {
        "attn_cls": looked_at,
        "lam_attn": share,
        "lam_final": final,
        "target_area": labelled(np.full(count, area)),
        "target": labelled(final),
        "target_small_box": labelled(small_final),
        "loss": np.asarray(cross_entropy(logits, labelled(final))),
    }
    return {
        "x": x,
        "y": y,
        "num_classes": np.int64(classes),
        "smoothing": np.float64(smoothing),
        "logits": logits,
        "lam_raw": np.float64(lam_raw),
        "box_cy": row,
        "box_cx": column,
        "attn_full": attention,
        "box": np.array(box),
        "box_small": np.array(small),
        "x_mixed": mixed,
        "mask_token": token_mask(box),
        "lam_area": np.float64(area),
        **{name: array.astype(np.float32) for name, array in f32.items()},
    }
