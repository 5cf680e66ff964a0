"""Streams of images, on small files of the layouts that CIFAR-5M, MNIST-1M and folders of pictures have."""

import itertools

import numpy as np
import pytest

import scalefield as sf
from scalefield import streams
from scalefield.errors import DatasetError


def cifar(n, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, n)


@pytest.fixture
def cifar_folder(tmp_path):
    sizes = [11, 7, 5, 6, 4, 9]
    parts = [cifar(n, seed) for seed, n in enumerate(sizes)]
    for index, (images, labels) in enumerate(parts):
        np.savez(tmp_path / f"cifar5m_part{index}.npz", X=images, Y=labels)
    return tmp_path, np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def test_cifar5m_is_mapped_and_read_by_position(cifar_folder):
    folder, images, labels = cifar_folder
    stream = sf.datasets.load_cifar5m(folder)
    assert (len(stream), stream.shape, stream.dtype, len(stream.parts)) == (42, (32, 32, 3), np.uint8, 6)
    assert stream.classes[3] == "cat"
    np.testing.assert_array_equal(stream.labels, labels)
    assert all(isinstance(part._images, np.memmap) for part in stream.parts)
    index = [41, 0, 10, 11, 11, 30]
    read, their_labels = stream.take(index)
    np.testing.assert_array_equal(read, images[index] / 255.0)
    np.testing.assert_array_equal(their_labels, labels[index])
    some = sf.datasets.load_cifar5m(folder, parts=[1, 4])
    np.testing.assert_array_equal(some.take(np.arange(11))[0], images[np.r_[11:18, 29:33]] / 255.0)
    assert len(sf.datasets.load_cifar5m(folder / "cifar5m_part2.npz")) == 5


@pytest.mark.parametrize("compressed", [False, True])
def test_batches_hold_every_image_once_and_repeat_with_the_seed(tmp_path, compressed, monkeypatch):
    # A small buffer, so that it moves along.
    monkeypatch.setattr(streams, "_BUFFER", 16)
    monkeypatch.setattr(streams, "_CHUNK", 5)
    for index, n in enumerate((30, 23)):
        images, labels = cifar(n, index)
        # Each image tells its position.
        images[:, 0, 0, 0] = np.arange(n) + 30 * index
        save = np.savez_compressed if compressed else np.savez
        save(tmp_path / f"cifar5m_part{index}.npz", X=images, Y=labels)
    stream = sf.datasets.load_cifar5m(tmp_path)
    labels = stream.labels

    def order(**options):
        positions, sizes = [], []
        for images, their_labels in stream.batches(8, **options):
            here = np.round(images[:, 0, 0, 0] * 255).astype(int)
            np.testing.assert_array_equal(their_labels, labels[here])
            positions += here.tolist()
            sizes.append(len(here))
        return positions, sizes

    assert order() == (list(range(53)), [8] * 6 + [5])
    shuffled, sizes = order(seed=1)
    assert sorted(shuffled) == list(range(53)) != shuffled
    assert sizes == [8] * 6 + [5]
    assert order(seed=1)[0] == shuffled != order(seed=2)[0]
    assert order(drop_last=True) == (list(range(48)), [8] * 6)
    twice, _ = order(seed=1, epochs=2)
    assert twice[:53] == shuffled != twice[53:]
    assert sorted(twice[53:]) == list(range(53))
    endless = list(itertools.islice(stream.batches(53, seed=3, epochs=None), 3))
    assert [len(their_labels) for _, their_labels in endless] == [53] * 3
    # Positions read from a compressed file are those of the mapped one.
    np.testing.assert_array_equal(np.round(stream.take([52, 3, 30])[0][:, 0, 0, 0] * 255), [52, 3, 30])


def test_samples_are_different_images_of_the_seed(cifar_folder):
    stream = sf.datasets.load_cifar5m(cifar_folder[0])
    images, _ = stream.sample(42, 5)
    np.testing.assert_array_equal(images, cifar_folder[1] / 255.0)
    first, again, other = (stream.sample(20, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    with pytest.raises(ValueError, match="n must be at most 42"):
        stream.sample(43)
    with pytest.raises(IndexError, match=r"index must lie in 0\.\.41"):
        stream.take([42])


@pytest.mark.parametrize("names", [("X", "Y"), ("images", "labels"), ("x_train", "y_train"), ("X_train", "y_train")])
@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (1, 28, 28), (784,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mnist1m_layouts(tmp_path, names, shape, dtype):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, *shape)).astype(dtype) if dtype == np.uint8 else rng.random((6, *shape), dtype)
    np.savez(tmp_path / "mnist1m.npz", **{names[0]: images, names[1]: np.arange(6).astype(np.uint8)})
    stream = sf.datasets.load_mnist1m(tmp_path / "mnist1m.npz")
    read, labels = stream.take(np.arange(6))
    scale = 255.0 if dtype == np.uint8 else 1.0
    np.testing.assert_array_equal(read, images.reshape(6, 28, 28).astype(float) / scale)
    np.testing.assert_array_equal(labels, np.arange(6))


def test_mnist1m_in_several_files_and_splits(tmp_path):
    for index in range(3):
        np.savez(tmp_path / f"part_{index}.npz", X_train=np.full((2, 28, 28), index, np.uint8), y_train=[0, 1],
                 X_test=np.full((1, 28, 28), 9, np.uint8), y_test=[9])  # fmt: skip
    stream = sf.datasets.load_mnist1m(tmp_path)
    np.testing.assert_array_equal(np.round(stream.take(np.arange(6))[0][:, 0, 0] * 255), [0, 0, 1, 1, 2, 2])
    assert sf.datasets.load_mnist1m(tmp_path, "test").labels.tolist() == [9, 9, 9]
    assert len(sf.datasets.load_mnist1m([tmp_path / "part_2.npz"])) == 2
    with pytest.raises(ValueError, match="split must be 'train' or 'test'"):
        sf.datasets.load_mnist1m(tmp_path, "all")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.zeros((3, 32, 32, 3), np.uint8)}, "must hold arrays X and Y, got X"),
        ({"X": np.zeros((3, 32, 32, 3)), "Y": [0, 1, 2]}, "X must be uint8, got float64"),
        ({"X": np.zeros((3, 3, 32, 32), np.uint8), "Y": [0, 1, 2]}, r"X must have shape \(n, 32, 32, 3\)"),
        ({"X": np.zeros((3, 28, 28), np.uint8), "Y": [0, 1, 2]}, r"got \(3, 28, 28\)"),
        ({"X": np.zeros((0, 32, 32, 3), np.uint8), "Y": np.zeros(0, int)}, "X holds no images"),
        ({"X": np.zeros((3, 32, 32, 3), np.uint8), "Y": [0, 1]}, "a label for each of the 3 images"),
        ({"X": np.zeros((3, 32, 32, 3), np.uint8), "Y": [0, 1, 10]}, r"Y must lie in 0\.\.9, got 0 to 10"),
        ({"X": np.zeros((3, 32, 32, 3), np.uint8), "Y": [-1, 1, 2]}, r"Y must lie in 0\.\.9, got -1 to 2"),
        ({"X": np.zeros((3, 32, 32, 3), np.uint8), "Y": [0.5, 1, 2]}, "Y must be integers"),
        ({"X": np.zeros((3, 32, 32, 3), np.uint8), "Y": ["a", "b", "c"]}, "Y must be integers"),
    ],
)
def test_other_layouts_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "cifar5m_part0.npz", **arrays)
    with pytest.raises(DatasetError, match=message):
        sf.datasets.load_cifar5m(tmp_path)


def test_python_objects_broken_and_cut_files_are_refused(tmp_path):
    path = tmp_path / "cifar5m_part0.npz"
    objects = np.empty(3, dtype=object)
    np.savez(path, X=objects, Y=np.arange(3))
    with pytest.raises(DatasetError, match="Python objects"):
        sf.datasets.load_cifar5m(path)
    path.write_bytes(b"not an archive")
    with pytest.raises(DatasetError, match=r"not a readable \.npz archive"):
        sf.datasets.load_cifar5m(path)
    images, labels = cifar(30, 0)
    np.savez_compressed(path, X=images, Y=labels)
    data = bytearray(path.read_bytes())
    data[20_000:20_100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"is damaged|not a readable"):
        sf.datasets.load_cifar5m(path).take([29])
    with pytest.raises(FileNotFoundError):
        sf.datasets.load_cifar5m(tmp_path / "nowhere.npz")
    with pytest.raises(FileNotFoundError):
        sf.datasets.load_cifar5m(tmp_path, parts=[0, 1])
    with pytest.raises(FileNotFoundError):
        sf.datasets.load_mnist1m(tmp_path / "empty")
    np.savez(tmp_path / "floats.npz", X=np.full((2, 28, 28), np.nan), Y=[0, 1])
    with pytest.raises(DatasetError, match="pixels must be finite"):
        sf.datasets.load_mnist1m(tmp_path / "floats.npz").take([0])


def test_image_folders(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (3, 6, 5, 3), dtype=np.uint8) for name in ("ant", "bee")}
    for name, images in pictures.items():
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{index}.png")
        (tmp_path / name / "notes.txt").write_text("no picture")
    stream = sf.datasets.load_image_folder(tmp_path)
    assert (len(stream), stream.shape, stream.classes) == (6, (6, 5, 3), ("ant", "bee"))
    images, labels = stream.take([5, 0, 3])
    expected = np.concatenate(list(pictures.values()))[[5, 0, 3]] / 255.0
    np.testing.assert_array_equal(images, expected)
    assert labels.tolist() == [1, 0, 1]
    gray = sf.datasets.load_image_folder(tmp_path, grayscale=True, size=(4, 4))
    assert gray.take([0])[0].shape == (1, 4, 4)
    assert sum(len(labels) for _, labels in gray.batches(4, seed=0)) == 6
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "ant" / "large.png")
    with pytest.raises(DatasetError, match=r"large\.png: has shape \(9, 9, 3\), others \(6, 5, 3\)"):
        sf.datasets.load_image_folder(tmp_path).take(np.arange(7))
    (tmp_path / "ant" / "0.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"0\.png: not a readable picture"):
        sf.datasets.load_image_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sf.datasets.load_image_folder(tmp_path / "nowhere")
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match="must hold a subfolder of pictures"):
        sf.datasets.load_image_folder(tmp_path / "none")


def test_targets_and_preprocessing():
    labels = np.array([0, 3, 1])
    np.testing.assert_array_equal(sf.datasets.class_targets(labels), np.eye(4)[labels])
    assert sf.datasets.class_targets(labels, "one-hot", 10).shape == (3, 10)
    assert sf.datasets.class_targets(labels, "parity").tolist() == [1.0, -1.0, -1.0]
    assert sf.datasets.class_targets(labels, "3").tolist() == [-1.0, 1.0, -1.0]
    for arguments, message in [
        ((labels, "odd"), "kind must be"),
        ((labels - 1,), "labels must be at least 0"),
        ((labels, "one-hot", 3), "labels must be below n_classes = 3"),
        ((labels * 1.5,), "labels must be a vector of integers"),
    ]:
        with pytest.raises(ValueError, match=message):
            sf.datasets.class_targets(*arguments)
    x = sf.datasets.preprocess(np.random.default_rng(0).random((5, 4, 3)))
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), np.sqrt(12), rtol=1e-14)
    with pytest.raises(ValueError, match="images must differ from their mean image"):
        sf.datasets.preprocess(np.ones((3, 2, 2)))
    with pytest.raises(ValueError, match="images must have shape"):
        sf.datasets.preprocess(np.ones(3))
    with pytest.raises(TypeError, match="images must be an array of real numbers"):
        sf.datasets.preprocess(np.full((2, 2), "a"))
