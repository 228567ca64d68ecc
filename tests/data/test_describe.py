"""What `describe_samples` finds in real datasets, and what a user's own description changes."""

import io
import warnings
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, Value
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from bif_lightning.data.describe import describe_samples


def gradient_picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    across = np.linspace(0, 255, width, dtype=np.uint8)[None, :].repeat(height, 0)
    return Image.fromarray(across).convert(mode)


def opened(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    return picture


@pytest.fixture
def digits() -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "note": [f"note {i}" for i in range(6)],
            "label": [0, 1, 2, 0, 1, 2],
            "image": [gradient_picture(100, 50) for _ in range(6)],
            "text": [f"text {i}" for i in range(6)],
            "uuid": [f"u-{i}" for i in range(6)],
        },
        features=Features(
            {
                "note": Value("string"),
                "label": ClassLabel(names=["zero", "one", "two"]),
                "image": datasets.Image(),
                "text": Value("string"),
                "uuid": Value("string"),
            }
        ),
    )


def test_a_hugging_face_dataset_names_its_columns(digits: datasets.Dataset) -> None:
    samples = describe_samples(digits, [4, 0])
    assert samples.ids == ("u-4", "u-0")
    assert samples.index.tolist() == [4, 0]
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 0]
    assert samples.label_names == ("zero", "one", "two")
    assert samples.texts == ("text 4", "text 0")
    assert samples.thumbnails is not None
    assert [opened(png).size for png in samples.thumbnails] == [(64, 32), (64, 32)]


def _refuse(_: Any) -> Any:
    raise AssertionError("the transform was run")


@pytest.mark.parametrize(
    "change",
    [
        lambda ds: ds.with_format("torch"),
        lambda ds: ds.with_format("numpy", columns=["label"]),
        lambda ds: ds.with_transform(_refuse),
    ],
    ids=["torch", "one column", "transform"],
)
def test_formats_and_transforms_change_nothing(digits: datasets.Dataset, change: Any) -> None:
    assert str(describe_samples(change(digits), [1, 3])) == str(describe_samples(digits, [1, 3]))


def test_rows_follow_a_selection_and_blocks_of_rows() -> None:
    dataset = datasets.Dataset.from_dict({"id": list(range(1000)), "label": [i % 7 for i in range(1000)]})
    chosen = dataset.select(range(999, -1, -1))
    index = list(range(0, 1000, 2))
    samples = describe_samples(chosen, index)
    assert samples.ids == tuple(str(999 - i) for i in index)
    assert samples.labels is not None
    assert samples.labels.tolist() == [(999 - i) % 7 for i in index]
    assert samples.label_names is None
    assert samples.texts is None
    assert samples.thumbnails is None


def test_the_first_string_column_is_the_text_but_never_the_id() -> None:
    dataset = datasets.Dataset.from_dict({"id": ["a", "b"], "tokens": [[1], [2]], "review": ["bad", "good"]})
    samples = describe_samples(dataset, [0, 1])
    assert samples.ids == ("a", "b")
    assert samples.texts == ("bad", "good")
    assert samples.labels is None


def test_ids_that_repeat_or_lack_give_way_to_the_index() -> None:
    dataset = datasets.Dataset.from_dict({"id": ["a", "a", None, "b"]})
    assert describe_samples(dataset, [0, 1]).ids == ("0", "1")
    assert describe_samples(dataset, [2, 3]).ids == ("2", "3")
    assert describe_samples(dataset, [0, 3]).ids == ("a", "b")


def test_hidden_labels_are_no_labels() -> None:
    features = Features({"label": ClassLabel(names=["no", "yes"])})
    dataset = datasets.Dataset.from_dict({"label": [-1, -1, 1, None]}, features=features)
    ignored = describe_samples([("a", -100), ("b", 1)], [0, 1]).labels
    assert ignored is not None
    assert ignored.tolist() == [-1, 1]
    assert describe_samples(dataset, [0, 1]).labels is None
    some = describe_samples(dataset, [0, 2, 3]).labels
    assert some is not None
    assert some.tolist() == [-1, 1, -1]


def test_labels_of_several_columns_prefer_the_one_called_label() -> None:
    features = Features({"coarse": ClassLabel(names=["c"]), "label": ClassLabel(names=["x", "y"])})
    dataset = datasets.Dataset.from_dict({"coarse": [0, 0], "label": [1, 0]}, features=features)
    assert describe_samples(dataset, [0]).label_names == ("x", "y")


def test_token_labels_are_no_class() -> None:
    dataset = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3, 4]], "labels": [[1, 2], [3, 4]]})
    samples = describe_samples(dataset, [0, 1])
    assert (samples.labels, samples.texts, samples.thumbnails) == (None, None, None)


def test_nested_lists_called_image_are_pictures() -> None:
    dataset = datasets.Dataset.from_dict({"image": [np.eye(8).tolist(), [[1.0], [2.0, 3.0]]], "label": [1, 0]})
    thumbnails = describe_samples(dataset, [0, 1]).thumbnails
    assert thumbnails is not None
    assert thumbnails[1] == b""
    assert np.asarray(opened(thumbnails[0])).tolist() == (np.kron(np.eye(8), np.ones((4, 4))) * 255).tolist()


def test_a_broken_picture_is_left_out_with_a_warning() -> None:
    file = io.BytesIO()
    gradient_picture(8, 8).save(file, "jpeg")
    stored = [{"bytes": file.getvalue(), "path": None}, {"bytes": b"no picture", "path": None}, None]
    dataset = datasets.Dataset.from_dict({"image": stored}, features=Features({"image": datasets.Image()}))
    with pytest.warns(UserWarning, match=r"1 of 3 pictures in column 'image'.*index 1"):
        thumbnails = describe_samples(dataset, [0, 1, 2]).thumbnails
    assert thumbnails is not None
    assert thumbnails[0] != b""
    assert thumbnails[1:] == (b"", b"")


def test_a_subset_counts_in_its_parent(digits: datasets.Dataset) -> None:
    inner: Any = Subset(digits, [5, 3, 1])  # type: ignore[arg-type]
    samples = describe_samples(Subset(inner, [2, 0]), [0, 1])
    assert samples.index.tolist() == [1, 5]
    assert samples.ids == ("u-1", "u-5")


class Flipped(Subset[Any]):
    def __getitem__(self, idx: Any) -> Any:
        x, y = super().__getitem__(idx)
        return x, 1 - y

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[i] for i in indices]


def test_a_subset_that_changes_its_items_is_believed() -> None:
    parent = TensorDataset(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]))
    samples = describe_samples(Flipped(parent, [3, 0]), [0, 1])
    assert samples.index.tolist() == [0, 1]
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (3, 8, 8)])
def test_tensors_that_look_like_pictures(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.zeros(2, *shape, dtype=dtype)
    x[..., 2, 5] = 16
    samples = describe_samples(TensorDataset(x, torch.tensor([7, 9])), [1, 0])
    assert samples.ids == ("1", "0")
    assert samples.labels is not None
    assert samples.labels.tolist() == [9, 7]
    assert samples.thumbnails is not None
    pixels = np.asarray(opened(samples.thumbnails[0]).convert("L"))
    expected = np.zeros((32, 32))
    expected[8:12, 20:24] = 255
    assert pixels.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "x",
    [torch.zeros(2, 64), torch.zeros(2, 8, 8, dtype=torch.int64), torch.zeros(2, 5, 8, 8), torch.zeros(2, 1, 600)],
    ids=["vector", "tokens", "five channels", "row"],
)
def test_tensors_that_do_not(x: torch.Tensor) -> None:
    samples = describe_samples(TensorDataset(x, torch.zeros(2)), [0, 1])
    assert samples.thumbnails is None
    assert samples.labels is None, "a floating-point target is no class"


def test_a_picture_of_nan_and_infinity_is_drawn() -> None:
    x = np.array([[np.nan, -np.inf, 0.0], [1.0, 1.7e308, -1.7e308]])
    thumbnails = describe_samples([x], [0]).thumbnails
    assert thumbnails is not None
    pixels = np.asarray(opened(thumbnails[0]))[::10, ::10]
    assert pixels.tolist() == [[0, 0, 128], [128, 255, 0]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I", "F", "I;16", "LA"])
def test_every_kind_of_pillow_image(mode: str) -> None:
    picture = gradient_picture(300, 20, "L" if mode == "I;16" else mode)
    picture = Image.fromarray(np.asarray(picture, dtype=np.uint16) * 256) if mode == "I;16" else picture
    before = picture.copy()
    thumbnails = describe_samples([(picture, 0)], [0]).thumbnails
    assert thumbnails is not None
    shown = opened(thumbnails[0])
    assert shown.size == (64, 4)
    grey = np.asarray(shown.convert("RGB").convert("L"), dtype=float)
    assert grey[:, -8:].mean() > grey[:, :8].mean() + 150
    assert picture.tobytes() == before.tobytes()


def test_dictionaries_and_strings_are_read_by_name_and_kind() -> None:
    items = [
        {"ID": torch.tensor(40), "target": np.int32(2), "sentence": "one", "pixel_values": torch.rand(3, 20, 20)},
        {"ID": 41, "target": np.int32(0), "sentence": "two", "pixel_values": torch.rand(3, 20, 20)},
    ]
    samples = describe_samples(items, [0, 1])
    assert samples.ids == ("40", "41")
    assert samples.texts == ("one", "two")
    assert samples.labels is not None
    assert samples.labels.tolist() == [2, 0]
    assert samples.thumbnails is not None
    assert opened(samples.thumbnails[0]).size == (20, 20)
    assert describe_samples(["a", "b"], [1]).texts == ("b",)


class Named(list[Any]):
    classes: Any = ("cat", "dog")


def test_class_names_come_from_classes_unless_they_are_too_few() -> None:
    assert describe_samples(Named([("x", 0), ("y", 1)]), [0]).label_names == ("cat", "dog")
    assert describe_samples(Named([("x", 0), ("y", 5)]), [0, 1]).label_names is None


def test_what_the_user_tells_wins(digits: datasets.Dataset) -> None:
    def describe(item: dict[str, Any]) -> dict[str, Any]:
        return {"id": f"mine/{item['text']}", "label": 2 - item["label"], "thumbnail": None}

    samples = describe_samples(digits, [0, 5], describe)
    assert samples.ids == ("mine/text 0", "mine/text 5")
    assert samples.labels is not None
    assert samples.labels.tolist() == [2, 0]
    assert samples.thumbnails is None
    assert samples.texts == ("text 0", "text 5"), "what is not told is still found"
    assert samples.label_names == ("zero", "one", "two")


def test_thumbnails_may_be_told_in_three_forms() -> None:
    file = io.BytesIO()
    gradient_picture(20, 20).save(file, "png")
    forms = [file.getvalue(), gradient_picture(20, 20), np.asarray(gradient_picture(20, 20))]
    thumbnails = describe_samples([0, 1, 2], [0, 1, 2], lambda i: {"thumbnail": forms[i]}).thumbnails
    assert thumbnails is not None
    pixels = [np.asarray(opened(png)) for png in thumbnails]
    assert all(np.array_equal(one, pixels[0]) for one in pixels)


def test_names_of_single_items_and_of_all() -> None:
    items = [(0.0, 2), (0.0, 0)]
    single = describe_samples(items, [0, 1], lambda item: {"label_name": f"class {item[1]}"})
    assert single.label_names == ("class 0", "1", "class 2")
    whole = describe_samples(items, [0, 1], lambda _: {"label_names": ["a", "b", "c", "d"]})
    assert whole.label_names == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        ({"lable": 1}, ValueError, r"unknown key 'lable' for index 0; the keys are id, label, label_name"),
        ({"label": "cat"}, TypeError, r"str 'cat' as 'label' of index 0; it must be a whole number"),
        ({"label": 1.0}, TypeError, r"float 1\.0 as 'label'"),
        ({"text": 3}, TypeError, r"'text' of index 0; it must be a string"),
        ({"thumbnail": b"GIF89a"}, TypeError, r"'thumbnail' of index 0; it must be the bytes of a PNG"),
        ({"label_names": "abc"}, TypeError, r"it must be a list of strings"),
        ({"label_name": "cat"}, ValueError, r"'cat' for index 0, which has no label; return its class index"),
        ({"label": 3, "label_names": ["a", "b"]}, ValueError, r"2 'label_names', but index 0 has the label 3"),
        ({"id": "same"}, ValueError, r"1 ids stand for more than one example: 'same' \(2 times\); list every"),
        ([], TypeError, r"describe returned list for index 0; it must return a dict"),
    ],
)
def test_a_wrong_description_is_refused_with_the_remedy(told: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        describe_samples([0.5, 0.25], [0, 1], lambda _: told)


def test_names_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="label 1 was named 'a' before"):
        describe_samples([("a", 1), ("b", 1)], [0, 1], lambda item: {"label_name": item[0]})
    with pytest.raises(ValueError, match="different 'label_names'"):
        describe_samples([("a", 1), ("b", 1)], [0, 1], lambda item: {"label_names": [item[0], "x"]})


def test_indices_outside_and_repeated_are_refused() -> None:
    with pytest.raises(IndexError, match="index -1 is outside of the dataset, which has 2 examples; pass 0 to 1"):
        describe_samples(["a", "b"], [0, -1])
    with pytest.raises(ValueError, match=r"'1' \(2 times\)"):
        describe_samples(["a", "b"], [1, 1])


def test_nothing_to_describe() -> None:
    samples = describe_samples(["a"], [])
    assert len(samples) == 0
    assert samples.labels is None


def test_quiet_on_good_data(digits: datasets.Dataset) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        describe_samples(digits, [0, 1])


def test_a_description_gives_columns_to_sort_by() -> None:
    told = [
        {"columns": {"hardness": np.float32(0.5), "source": "web"}},
        {},
        {"columns": {"hardness": None, "new": True}},
    ]
    columns = describe_samples([(f"text {i}", i) for i in range(3)], [2, 0, 1], lambda item: told[item[1]]).columns
    assert columns is not None
    assert list(columns) == ["hardness", "new", "source"]
    np.testing.assert_array_equal(columns["hardness"], [np.nan, 0.5, np.nan])
    np.testing.assert_array_equal(columns["new"], [1.0, np.nan, np.nan])
    assert columns["source"].tolist() == ["", "web", ""]
    assert describe_samples([("a", 0)], [0]).columns is None


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["hardness"], "it must be a dict of names"),
        ({"x": [1, 2]}, "it must be a dict of names"),
        ({"x": "a"}, "strings for all"),
    ],
)
def test_columns_that_cannot_be_sorted_are_refused(columns: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        describe_samples([("a", 0), ("b", 1)], [0, 1], lambda item: {"columns": columns if item[1] else {"x": 1}})
